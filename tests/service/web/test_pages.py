"""The pages over HTTP: what each shows, to whom, and that hostile names stay text."""

import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlencode

import optuna
import pytest
from starlette.testclient import TestClient

from prunesearch.config.recipe import Recipe
from prunesearch.errors import InputError
from prunesearch.runtime.json_values import JsonObject
from prunesearch.service.access.roles import Role
from prunesearch.service.job import Job, JobProgress, JobRequest, StageRecord
from prunesearch.studies import persistence
from tests.support.html_page import Element, check_page
from tests.support.http_service import BASE, QUICK, HttpService, http_service
from tests.support.stored_studies import recommend, store_study, trial

HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "'; DROP TABLE studies;--",
    "{{ 7 * 7 }}{% raw %}",
    "safe\u202egnp.exe\u2066\u200b",
    "x" * 512,
    "a\nb\r\nc\x00\x1b[2J",
    "../../etc/passwd?#%2e%2e",
    "</bdi></pre></main><h1>",
)
"""Names, texts and lines that somebody could give."""
TEXT = " ".join(HOSTILE)
RECIPE = Recipe(model="tiny", drop="2", sampler="pso").document()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpService]:
    folder = tmp_path_factory.mktemp("service")
    with http_service(folder, replace(QUICK, sign_ins_per_minute=10_000)) as started:
        yield started


@pytest.fixture(autouse=True)
def _clean(service: HttpService) -> Iterator[None]:
    """Each test has its own jobs, and starts signed out."""
    service.jobs.__init__()  # type: ignore[misc]
    service.client.cookies.clear()
    yield
    service.client.cookies.clear()


def test_the_dashboard_is_linked_by_the_name_of_the_service(service: HttpService) -> None:
    client = browser(service)
    assert 'href="http://127.0.0.1:8713"' in client.get("/").text
    # A session belongs to the name with which the browser came.
    client.cookies.clear()
    answer = client.post(
        "/sign-in",
        data={"token": service.tokens["viewer"]},
        headers={"Host": "localhost:8712"},
        follow_redirects=False,
    )
    session = answer.headers["set-cookie"].partition(";")[0]
    page = client.get("/", headers={"Host": "localhost:8712", "Cookie": session})
    assert 'href="http://localhost:8713"' in page.text


def browser(service: HttpService, role: Role = "submitter") -> TestClient:
    """The client, signed in as a browser."""
    client = service.client
    answer = client.post("/sign-in", data={"token": service.tokens[role]}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    client.headers["Accept"] = "text/html"
    return client


def page(client: TestClient, path: str, status: int = 200) -> Element:
    """A page that was checked."""
    answer = client.get(path)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    return check_page(answer.text)


def csrf(shown: Element) -> str:
    return shown.all("input", name="csrf_token")[0].attributes["value"]


def job_of(service: HttpService, user: str = "a-submitter", **changes: object) -> str:
    """Add a job in some state."""
    job, _ = service.jobs.submit(JobRequest(RECIPE, "run", 12, None), user)
    made: Job = replace(service.jobs.get(job.id), **changes)  # type: ignore[arg-type]
    service.jobs._jobs[job.id] = made
    return job.id


RUNNING = JobProgress("searching", 5, 12, "trials", 1, 4, 0.3728, "1,3")


def test_a_browser_without_a_session_is_led_to_the_sign_in_page(service: HttpService) -> None:
    for path in ("/", "/jobs/job-0123456789abcdef", "/studies/x", "/submit", "/tokens", "/audit"):
        answer = service.client.get(path, follow_redirects=False)
        assert answer.status_code == 303
        assert answer.headers["location"].startswith("/sign-in?next=/")
    shown = page(service.client, "/sign-in?next=/submit")
    assert shown.one("input", name="next").attributes["value"] == "/submit"
    assert shown.one("input", id="token").attributes["type"] == "password"


@pytest.mark.parametrize(
    "target", ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:alert(1)"]
)
def test_signing_in_leads_to_no_other_site(service: HttpService, target: str) -> None:
    fields = {"token": service.tokens["viewer"], "next": target}
    answer = service.client.post("/sign-in", data=fields, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")


def test_a_wrong_token_is_named_at_its_field_and_not_shown_again(service: HttpService) -> None:
    answer = service.client.post("/sign-in", data={"token": "ps_wrong"})
    shown = check_page(answer.text)
    assert answer.status_code == 403
    assert "not known" in shown.one("p", id="token-wrong").text
    assert "ps_wrong" not in answer.text
    assert "set-cookie" not in answer.headers


def test_the_cookie_is_for_this_site_and_ends_with_the_session(service: HttpService) -> None:
    answer = service.client.post(
        "/sign-in", data={"token": service.tokens["viewer"]}, follow_redirects=False
    )
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    shown = page(browser(service), "/")
    assert service.client.post("/sign-out", data={"csrf_token": csrf(shown)}).status_code == 200
    service.client.headers["Cookie"] = cookie.partition(";")[0]
    assert service.client.get("/", follow_redirects=False).status_code in (200, 303)
    del service.client.headers["Cookie"]


def test_an_empty_service_says_what_to_do(service: HttpService) -> None:
    shown = page(browser(service), "/")
    assert "Nothing was submitted yet" in shown.text
    assert any(link.attributes["href"] == "/submit" for link in shown.one("main").all("a"))
    service.client.cookies.clear()
    shown = page(browser(service, "viewer"), "/")
    assert all(link.attributes["href"] != "/submit" for link in shown.all("a"))


def test_the_list_shows_progress_and_filters(service: HttpService) -> None:
    running = job_of(service, state="running", progress=RUNNING)
    job_of(service, user="grace", state="failed", error="out of memory")
    client = browser(service)
    shown = page(client, "/")
    bar = shown.one("progress")
    assert (bar.attributes["value"], bar.attributes["max"]) == ("5", "12")
    assert "0.3728" in shown.text
    assert "out of memory" in shown.text
    assert "data-active" in shown.one("section", id="jobs").attributes
    only = page(client, "/?state=failed")
    assert len(only.all("li", class_="job")) == 1
    assert "data-active" in only.one("section", id="jobs").attributes  # another one still runs
    assert "No job matches" in page(client, "/?by=nobody&study=x").text
    assert len(page(client, "/?by=a-submitter").all("a", href=f"/jobs/{running}")) == 1


def test_lists_have_pages(service: HttpService) -> None:
    for _ in range(30):
        job_of(service)
    client = browser(service)
    shown = page(client, "/?state=queued")
    following = shown.one("a", rel="next").attributes["href"]
    assert "state=queued" in following
    rest = page(client, following)
    assert len(shown.all("li", class_="job")) + len(rest.all("li", class_="job")) == 30
    assert rest.one("a", rel="first").attributes["href"] == "/?state=queued"


def test_a_job_shows_stages_log_and_verbs(service: HttpService) -> None:
    stages = (StageRecord("search", "running"), StageRecord("export", "waiting"))
    job = job_of(service, state="running", progress=RUNNING, stages=stages, started=1.8e9)
    service.jobs.add_event(job, "log", line="trial 1: kl 0.5")
    service.jobs.add_event(job, "search", done=1)
    service.jobs.add_event(job, "stage", name="search", state="running", seconds=None)
    client = browser(service)
    shown = page(client, f"/jobs/{job}")
    follow = shown.one("div", id="job").attributes
    assert follow["data-events"] == f"/v1/jobs/{job}/events"
    assert follow["data-after"] == str(service.jobs.get(job).last_event)
    assert (
        shown.one("pre", id="lines").text == "[the job is queued] trial 1: kl 0.5 [search: running]"
    )
    labels = [button.text for button in shown.one("div", class_="verbs").all("button")]
    assert labels == ["Pause", "Stop the search", "Cancel", "Yes, cancel it", "Keep it"]
    stages_shown = [stage.all("b")[0].text for stage in shown.one("ol").all("li")]
    assert stages_shown == ["search", "export"]
    # The script asks for the parts that change only.
    assert page(client, f"/jobs/{job}?live=1").one("pre", id="lines").text == ""


@pytest.mark.parametrize(
    ("verb", "state", "after"),
    [("pause", "running", "paused"), ("resume", "paused", "queued"), ("cancel", "queued", "cancelled"),
     ("stop", "running", "finished")],
)  # fmt: skip
def test_verbs_are_buttons(service: HttpService, verb: str, state: str, after: str) -> None:
    job = job_of(service, state=state)
    client = browser(service)
    token = csrf(page(client, f"/jobs/{job}"))
    answer = client.post(f"/jobs/{job}/{verb}", data={"csrf_token": token})
    assert answer.status_code == 200
    assert service.jobs.get(job).state == after
    assert check_page(answer.text).one("p", class_="notice done").text
    last = service.access.audit.changes(1)[0]
    assert (last.who, last.action, last.target) == ("a-submitter", f"{verb}_job", job)


def test_deleting_leads_to_the_list(service: HttpService) -> None:
    job = job_of(service, state="finished")
    client = browser(service)
    token = csrf(page(client, f"/jobs/{job}"))
    answer = client.post(f"/jobs/{job}/delete", data={"csrf_token": token})
    assert (answer.status_code, answer.url.path) == (200, "/")
    assert service.jobs.list().jobs == ()


def test_a_change_needs_the_csrf_token_and_ones_own_job(service: HttpService) -> None:
    own, other = job_of(service), job_of(service, user="grace")
    client = browser(service)
    shown = page(client, f"/jobs/{other}")
    assert shown.one("div", class_="verbs").all("button") == []
    token = csrf(shown)
    for path, fields in (
        (f"/jobs/{own}/cancel", {}),
        (f"/jobs/{own}/cancel", {"csrf_token": "0" * 64}),
        (f"/jobs/{other}/cancel", {"csrf_token": token}),
        ("/tokens", {"csrf_token": token, "name": "x", "role": "admin"}),
        ("/tokens/revoke", {"csrf_token": token, "name": "a-admin"}),
        ("/submit", {"model": "tiny"}),
    ):
        answer = client.post(path, data=fields)
        assert answer.status_code == 403, path
        assert "a-submitter" in check_page(answer.text).text or "CSRF" in answer.text
    foreign = {"Origin": "https://evil.example"}
    answer = client.post(f"/jobs/{own}/cancel", data={"csrf_token": token}, headers=foreign)
    assert answer.status_code == 403
    assert {job.state for job in service.jobs.list().jobs} == {"queued"}


@pytest.mark.parametrize(
    "state", ["queued", "running", "paused", "finished", "failed", "cancelled"]
)
def test_hostile_names_stay_text_on_every_page(service: HttpService, state: str) -> None:
    recipe = {**RECIPE, "model": {"path": TEXT}, "search": {"drop": TEXT, "sampler": TEXT}}
    progress = JobProgress(TEXT, 1, 3, TEXT, 0, 1, 0.5, TEXT)
    stages = (StageRecord(TEXT, "finished", 3.0),)
    job = job_of(
        service, state=state, study=TEXT, recipe=recipe, submitted_by=TEXT, error=TEXT,
        progress=progress, stages=stages, started=1.8e9,
    )  # fmt: skip
    for line in (*HOSTILE, TEXT):
        service.jobs.add_event(job, "log", line=line)
    client = browser(service, "admin")
    for path in ("/", f"/jobs/{job}", f"/submit?like={job}"):
        shown = page(client, path)
        assert "<script>alert(1)</script>" in shown.text or path.startswith("/submit")
        assert "49" not in shown.one("h1").text
        assert "\u202e" not in client.get(path).text


def test_hostile_queries_are_shown_as_text(service: HttpService) -> None:
    client = browser(service, "admin")
    for text in HOSTILE:
        clean = text.replace("\x00", "")
        shown = page(client, f"/?{urlencode({'study': clean, 'by': clean[:90], 'state': clean})}")
        value = shown.one("input", id="study").attributes["value"]
        assert value.split() == clean.split()
    for path in ("/jobs/<script>", "/studies/<script>alert(1)</script>", "/<script>"):
        page(client, path, status=404)


def make_study(service: HttpService, name: str, directions: int = 1, trials: int = 60) -> None:
    """A study in the database of the service."""
    storage = persistence.open_storage(service.services.settings.storage, create=True)
    made = optuna.create_study(
        storage=storage, study_name=name, directions=["minimize"] * directions
    )
    made.set_user_attr("recipe", json.dumps(Recipe(model="tiny", drop="2").document()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        made.set_metric_names(["kl", "bytes"][:directions])
    names = [f"drop_{layer:02}" for layer in range(6)]
    choice = optuna.distributions.CategoricalDistribution([0, 1])
    for number in range(trials):
        made.add_trial(
            optuna.trial.create_trial(
                params=dict.fromkeys(names, 0),
                distributions=dict.fromkeys(names, choice),
                values=[1 / (1 + number * 7 % 60), 1000.0 * (number % 5 + 1)][:directions],
                user_attrs={"dropped": f"{number % 5},5a"},
            )
        )


def test_the_page_of_a_noisy_study_says_how_its_best_was_decided(service: HttpService) -> None:
    storage = service.services.settings.storage
    store_study(storage, "noisy", [trial(0, 0.46), trial(1, 0.41)], maximize=(True,))
    recommend(storage, "noisy", chosen=1, naive=0, trials=2)
    shown = page(browser(service, "viewer"), "/studies/noisy").text
    assert "0.41" in shown
    assert "confirmed: trial 1" in shown
    assert "naive best: trial 0" in shown
    assert "found by trial 0" in shown
    assert "trial 1 is recommended" in shown


def test_a_study_has_a_curve_a_map_and_a_sorted_table(service: HttpService) -> None:
    name = "a/b <i>&"
    make_study(service, name)
    client = browser(service, "viewer")
    links = [link for link in page(client, "/").all("a") if link.text == name]
    path = links[0].attributes["href"]
    shown = page(client, path)
    assert shown.one("h1").text == name
    assert shown.all("circle", class_="best")
    assert len(shown.one("table", class_="map narrow").all("tr")) == 13
    assert "1 to 50 of 60 finished trials" in shown.text
    rest = page(client, shown.one("a", rel="next").attributes["href"].partition("#")[0])
    assert "51 to 60 of 60 finished trials" in rest.text
    # The headings sort, and turn the order.
    kl = next(link for link in shown.all("a") if link.text == "kl")
    ordered = page(client, kl.attributes["href"].partition("#")[0])
    values = [
        float(row.all("td")[0].text)
        for row in ordered.one("section", id="trials-card").all("tr")[1:]
    ]
    assert values == sorted(values)
    sorted_by = [head.text for head in ordered.all("th") if "aria-sort" in head.attributes]
    assert sorted_by == ["kl ▲"]
    for odd in ("?sort=9&order=x&from=99999", "?sort=number&order=descending&from=60"):
        assert "finished trials" in page(client, path + odd).text
    csv = next(link for link in shown.all("a") if "CSV" in link.text)
    assert csv.attributes["href"] == "/v1/studies/a%2Fb%20%3Ci%3E%26/trials.csv"


def test_a_pareto_study_has_a_front(service: HttpService) -> None:
    make_study(service, "pareto", directions=2)
    shown = page(browser(service, "viewer"), "/studies/pareto")
    assert shown.one("h2", id="curve-title").text == "Front"
    assert "on the front" in shown.one("p", id="curve-text").text
    job = job_of(service, study="pareto", state="running")
    assert page(service.client, f"/jobs/{job}").one("h2", id="curve-title").text == "Front"


def test_a_recipe_is_submitted_once_however_often_the_page_is_sent(service: HttpService) -> None:
    client = browser(service)
    shown = page(client, "/submit")
    fields = {element.attributes["name"]: element.attributes.get("value", "") for element in shown.one("form", id="recipe-fields").all("input")}  # fmt: skip
    fields |= {"model": "tiny", "drop": "3", "do": "check"}
    checked = check_page(client.post("/submit", data=fields).text)
    assert "valid" in checked.one("section", id="checked").text
    assert checked.one("input", id="drop").attributes["value"] == "3"
    assert service.jobs.list().jobs == ()
    fields["do"] = "submit"
    for _ in range(2):
        answer = client.post("/submit", data=fields)
        assert answer.url.path.startswith("/jobs/job-")
    assert len(service.jobs.list().jobs) == 1
    assert service.jobs.list().jobs[0].recipe["search"] == {"drop": "3", "sampler": "pso"}


def test_a_refused_recipe_is_shown_beside_its_field_and_without_marks_of_code(
    service: HttpService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(request: JobRequest) -> None:
        raise InputError("`drop` 99 leaves no layer")

    monkeypatch.setattr(service.jobs, "check", refuse)
    client = browser(service)
    fields = {"csrf_token": csrf(page(client, "/submit")), "model": "tiny", "drop": "99"}
    answer = client.post("/submit", data=fields | {"do": "check"})
    assert "drop 99 leaves no layer" in check_page(answer.text).one("p", id="drop-wrong").text
    assert "`drop`" not in answer.text


def test_mistakes_are_beside_their_fields_and_the_input_stays(service: HttpService) -> None:
    client = browser(service)
    token = csrf(page(client, "/submit"))
    fields = {
        "csrf_token": token,
        "drop": "lots",
        "model": "../../etc",
        "trials": "<b>",
        "study": TEXT,
    }
    answer = client.post("/submit", data=fields)
    assert answer.status_code == 422
    shown = check_page(answer.text)
    assert "'<b>' is not a whole number" in shown.one("p", id="trials-wrong").text
    assert shown.one("input", id="trials").attributes["aria-invalid"] == "true"
    assert shown.one("input", id="drop").attributes["value"] == "lots"
    assert "../../etc" in shown.one("select", id="model").text
    answer = client.post("/submit", data={**fields, "trials": ""})
    assert "cannot be read" in check_page(answer.text).one("p", id="drop-wrong").text
    assert service.jobs.list().jobs == ()


def test_yaml_is_kept_and_its_problem_is_named(service: HttpService) -> None:
    client = browser(service)
    token = csrf(page(client, "/submit?as=yaml"))
    for text, problem in (
        ("model: [", "not YAML"),
        ("a: &x 1\nb: *x", "no references"),
        ("model: tiny\nsearch: {drop: 4, sampler: psoo}", "did you mean 'pso'"),
        ("!!python/object/apply:os.system [ls]", "not YAML"),
    ):
        answer = client.post("/submit", data={"csrf_token": token, "as": "yaml", "yaml": text})
        assert answer.status_code == 422
        shown = check_page(answer.text)
        assert problem in shown.one("p", id="yaml-wrong").text
        assert shown.one("textarea", id="yaml").text == " ".join(text.split())
    good = {
        "csrf_token": token,
        "as": "yaml",
        "yaml": "model: tiny\nsearch: {drop: 4}",
        "trials": "5",
    }
    assert client.post("/submit", data=good).url.path.startswith("/jobs/job-")


def test_the_report_and_the_export_of_a_finished_job(service: HttpService, tmp_path: Path) -> None:
    cost: JsonObject = {"params": 200, "bytes": 2048, "latency_ms": 10.0}
    report: JsonObject = {
        "trials": 12,
        "dense": {"metrics": {"kl": 0.0}, "cost": cost},
        "best": {"dropped": "1,3", "metrics": {"kl": 0.5}, "cost": cost},
    }
    job = job_of(service, state="finished")
    service.jobs.results[job] = report
    (tmp_path / "sub").mkdir()
    (tmp_path / "model #1.safetensors").write_bytes(b"x" * 2048)
    (tmp_path / "sub" / "a.json").write_text("{}")
    service.jobs.add_export(job, tmp_path)
    shown = page(browser(service, "viewer"), f"/jobs/{job}")
    assert "drops layers 1,3" in shown.one("section", id="report-card").text
    files = [link.attributes["href"] for link in shown.all("a") if "download" in link.attributes]
    assert f"/v1/jobs/{job}/export/files/model%20%231.safetensors" in files
    assert f"/v1/jobs/{job}/export/files/sub/a.json" in files
    assert "2.0 KiB" in shown.text


def test_admins_make_and_revoke_tokens(service: HttpService) -> None:
    client = browser(service, "admin")
    token = csrf(page(client, "/tokens"))
    fields = {"csrf_token": token, "name": "ci-runner", "role": "submitter", "expires": "30d"}
    shown = check_page(client.post("/tokens", data=fields).text)
    secret = shown.one("input", id="secret").attributes["value"]
    assert re.fullmatch(r"ps_[\w-]{43}", secret)
    assert secret not in client.get("/tokens").text
    for wrong, field in (
        ({"name": "<b>"}, "name"), ({"expires": "soon"}, "expires"), ({"role": "root"}, "role"),
    ):  # fmt: skip
        answer = client.post("/tokens", data={**fields, "name": "other", **wrong})
        assert answer.status_code == 422
        assert check_page(answer.text).one("p", id=f"{field}-wrong").text
    answer = client.post("/tokens/revoke", data={"csrf_token": token, "name": "ci-runner"})
    assert answer.status_code == 200
    assert "revoked" in check_page(answer.text).text
    audit = page(client, "/audit").text
    assert "create_token" in audit
    assert "revoke_token" in audit
    assert secret not in audit


def test_errors_are_pages_for_browsers_and_problem_documents_for_programs(
    service: HttpService,
) -> None:
    client = browser(service, "viewer")
    for path, status in (("/nosuch", 404), ("/tokens", 403), ("/jobs/x", 404)):
        shown = page(client, path, status)
        assert f"Status {status}" in shown.text
    for path in ("/v1/jobs/job-0123456789abcdef", "/v1/nosuch"):
        answer = client.get(path)
        assert answer.headers["content-type"] == "application/problem+json"
    answer = client.get("/nosuch", headers={"Accept": "application/json"})
    assert answer.headers["content-type"] == "application/problem+json"
    service.jobs.failing = RuntimeError("secret internals")
    shown = page(client, "/", 500)
    assert "secret" not in shown.text
    assert shown.all("a", href="/")


def test_files_of_the_pages(service: HttpService) -> None:
    for name, kind in (
        ("app.css", "text/css"),
        ("app.js", "text/javascript"),
        ("icon.svg", "image/svg+xml"),
    ):
        answer = service.client.get(f"/static/{name}")
        assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, kind)
        assert "nosniff" in answer.headers["x-content-type-options"]
    for name in ("nosuch", "..%2Fpages.py", "%2e%2e/pages.py", "app.css/../../pages.py"):
        assert service.client.get(f"{BASE}/static/{name}").status_code == 404
