"""Routes of jobs."""

from tests.support.http_service import HttpService


def test_a_job_is_submitted_once_for_each_key(service: HttpService) -> None:
    document = {"recipe": {"model": "m"}, "trials": 7}
    headers = service.headers("submitter", **{"Idempotency-Key": "k1"})
    first = service.client.post("/v1/jobs", json=document, headers=headers)
    again = service.client.post("/v1/jobs", json=document, headers=headers)
    other = service.client.post("/v1/jobs", json={"recipe": {"model": "n"}}, headers=headers)
    assert (first.status_code, again.status_code, other.status_code) == (201, 200, 409)
    assert first.json() == again.json()
    assert first.headers["location"] == f"/v1/jobs/{first.json()['id']}"
    assert (first.json()["trials"], first.json()["submitted_by"]) == (7, "a-submitter")


def test_a_recipe_may_be_yaml_and_a_refused_one_names_the_field(service: HttpService) -> None:
    def submit(recipe: object) -> tuple[int, dict[str, object]]:
        answer = service.client.post("/v1/jobs", json={"recipe": recipe}, headers=service.headers())
        return answer.status_code, answer.json()

    assert submit("model: m\nsearch: {drop: 4}\n")[0] == 201
    status, problem = submit({"model": "../secret"})
    assert status == 422
    assert problem["errors"] == [{"field": "model", "message": problem["detail"]}]
    assert "references" in str(submit("a: &x [1]\nb: [*x, *x]\n")[1]["detail"])
    assert "not YAML" in str(submit("a: [1")[1]["detail"])
    assert "not a mapping" in str(submit("- 1")[1]["detail"])
    assert "too deeply" in str(submit("[" * 5000)[1]["detail"])
    assert "keys are names" in str(submit("1: 2")[1]["detail"])
    assert submit(3)[1]["errors"][0]["field"] == "recipe"  # type: ignore[index]
    assert len(service.jobs.list().jobs) == 1


def test_lists_are_paged_and_filtered(service: HttpService) -> None:
    made = [service.submit() for _ in range(3)]
    service.jobs.finish(made[0])
    headers = service.headers("viewer")
    page = service.client.get("/v1/jobs?limit=2", headers=headers).json()
    rest = service.client.get(f"/v1/jobs?limit=2&cursor={page['next']}", headers=headers).json()
    assert [job["id"] for job in page["jobs"] + rest["jobs"]] == made[::-1]
    assert rest["next"] is None
    found = service.client.get("/v1/jobs?state=finished", headers=headers).json()
    assert [job["id"] for job in found["jobs"]] == made[:1]


def test_verbs_change_own_jobs_only_unless_an_admin_asks(service: HttpService) -> None:
    own, other = service.submit("submitter"), service.submit("admin")

    def post(job: str, verb: str, role: str = "submitter") -> tuple[int, str]:
        path = f"/v1/jobs/{job}/{verb}"
        answer = service.client.post(path, headers=service.headers(role))  # type: ignore[arg-type]
        return answer.status_code, answer.json().get("state", "")

    assert post(own, "pause") == (200, "paused")
    assert post(own, "pause") == (200, "paused")
    assert post(own, "resume") == (200, "queued")
    assert post(own, "resume")[0] == 409
    assert post(other, "cancel")[0] == 403
    assert service.jobs.get(other).state == "queued"
    assert post(own, "cancel", "admin") == (200, "cancelled")
    assert post("job-0123456789abcdef", "cancel")[0] == 404
    headers = service.headers("submitter")
    assert service.client.delete(f"/v1/jobs/{own}", headers=headers).status_code == 204
    assert service.client.get(f"/v1/jobs/{own}", headers=headers).status_code == 404


def test_result_and_log_are_shown(service: HttpService) -> None:
    job = service.submit()
    headers = service.headers("viewer")
    assert service.client.get(f"/v1/jobs/{job}/result", headers=headers).status_code == 404
    service.jobs.add_event(job, "log", line="line 1")
    service.jobs.results[job] = {"best": float("nan")}
    assert service.client.get(f"/v1/jobs/{job}/result", headers=headers).json() == {"best": None}
    log = service.client.get(f"/v1/jobs/{job}/log", headers=headers)
    assert (log.text, log.headers["content-type"]) == ("line 1\n", "text/plain; charset=utf-8")


def test_changes_are_written_to_the_audit_log(service: HttpService) -> None:
    job = service.submit()
    service.client.post(f"/v1/jobs/{job}/cancel", headers=service.headers())
    service.client.post(f"/v1/jobs/{job}/cancel", headers=service.headers("viewer"))  # refused
    done = service.access.audit.changes(10)
    assert [(change.who, change.action, change.target) for change in done] == [
        ("a-submitter", "cancel_job", job),
        ("a-submitter", "submit_job", job),
    ]
    assert done[0].address == "testclient"
