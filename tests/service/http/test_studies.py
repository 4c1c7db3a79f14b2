"""Routes of studies: lists, the best trials, CSV; and the cache."""

import csv
import io

from optuna.trial import TrialState

from tests.support.http_service import HttpService
from tests.support.stored_studies import recommend, store_study, study_of, trial


def get(service: HttpService, path: str) -> dict[str, object]:
    answer = service.client.get(path, headers=service.headers("viewer"))
    assert answer.status_code == 200, answer.text
    found: dict[str, object] = answer.json()
    return found


def test_there_are_no_studies_before_the_first_job(service: HttpService) -> None:
    assert get(service, "/v1/studies") == {"studies": [], "next": None}
    missing = service.client.get("/v1/studies/none", headers=service.headers("viewer"))
    assert missing.status_code == 404


def test_studies_are_listed_with_their_counts_and_best_trials(service: HttpService) -> None:
    storage = service.services.settings.storage
    trials = [trial(number, 1.0 + (number - 3) ** 2) for number in range(8)]
    trials.append(trial(8, state=TrialState.FAIL))
    store_study(storage, "a", trials)
    store_study(storage, "b/x y", [trial(0, 0.2), trial(1, 0.9)], maximize=(True,))
    store_study(
        storage,
        "c",
        [trial(0, 3.0, 1.0), trial(1, 2.0, 2.0), trial(2, 2.5, 2.5)],
        maximize=(False, False),
    )
    page = get(service, "/v1/studies?limit=2")
    studies = page["studies"]
    assert isinstance(studies, list)
    assert (page["next"], [study["name"] for study in studies]) == ("b/x y", ["a", "b/x y"])
    first, second = studies
    assert (first["trials"], first["failed"], first["best_number"]) == (8, 1, 3)
    assert (first["best_value"], first["best_dropped"]) == (1.0, "0,3")
    assert (second["best_value"], second["best_number"]) == (0.9, 1)
    # The folder of the model is not shown.
    assert (first["model"], first["drop"], first["sampler"]) == ("tiny", "2", "pso")
    third = get(service, "/v1/studies?cursor=b/x y")["studies"][0]  # type: ignore[index]
    assert (third["name"], third["objectives"], third["best_value"]) == ("c", 2, None)
    front = get(service, "/v1/studies/c/front")["trials"]
    assert [row["number"] for row in front] == [1, 0]  # type: ignore[attr-defined]
    details = get(service, "/v1/studies/b%2Fx%20y")
    assert "/secret" not in str(details)
    assert details["recipe"]["search"]["drop"] == "2"  # type: ignore[index]


def test_trials_are_paged_in_order_and_filtered(service: HttpService) -> None:
    trials = [trial(number, float(number)) for number in range(5)]
    trials.insert(2, trial(9, state=TrialState.FAIL, failure="out of memory"))
    store_study(service.services.settings.storage, "s", trials)
    page = get(service, "/v1/studies/s/trials?limit=4")
    rest = get(service, f"/v1/studies/s/trials?limit=4&cursor={page['next']}")
    numbers = [row["number"] for row in page["trials"] + rest["trials"]]  # type: ignore[operator]
    assert numbers == [0, 1, 2, 3, 4, 5]
    assert rest["next"] is None
    failed = get(service, "/v1/studies/s/trials?state=fail")["trials"]
    assert [row["attributes"]["failure"] for row in failed] == ["out of memory"]  # type: ignore[attr-defined]
    layers = get(service, "/v1/studies/s/layers")
    assert [row["layer"] for row in layers["layers"]] == ["0", "1", "2", "3"]  # type: ignore[attr-defined]
    best = get(service, "/v1/studies/s/best")
    assert (best["number"], best["values"]) == (0, [0.0])


def test_the_recommended_trial_of_a_noisy_study_is_its_best(service: HttpService) -> None:
    storage = service.services.settings.storage
    store_study(storage, "n", [trial(0, 0.46), trial(1, 0.41), trial(2, 0.3)], maximize=(True,))
    # Before the decision, the best measured value counts.
    best = get(service, "/v1/studies/n/best")
    assert (best["number"], best["recommendation"]) == (0, None)
    assert get(service, "/v1/studies/n")["recommendation"] is None
    recommend(storage, "n", chosen=1, naive=0, trials=3)
    best = get(service, "/v1/studies/n/best")
    assert (best["number"], best["values"]) == (1, [0.41])
    assert best["recommendation"]["further"] == 400  # type: ignore[index]
    study = get(service, "/v1/studies/n")
    assert (study["best_number"], study["best_value"], study["best_dropped"]) == (1, 0.41, "1,2")
    assert study["recommendation"] == best["recommendation"]
    listed = get(service, "/v1/studies")["studies"][0]  # type: ignore[index]
    assert (listed["best_number"], listed["best_value"]) == (1, 0.41)
    # A further trial makes the decision old.
    study_of(storage, "n").add_trial(trial(3, 0.5))
    assert get(service, "/v1/studies/n")["best_number"] == 3
    assert get(service, "/v1/studies/n/best")["recommendation"] is None


def test_a_spreadsheet_computes_nothing_in_the_csv(service: HttpService) -> None:
    evil = '=HYPERLINK("https://other.site")'
    store_study(
        service.services.settings.storage,
        "=cmd",
        [
            trial(0, -0.5, failure=evil),
            trial(1, 0.5, failure="-1+1"),
            trial(2, 0.7, failure="a,\n"),
        ],
    )
    answer = service.client.get("/v1/studies/%3Dcmd/trials.csv", headers=service.headers("viewer"))
    assert answer.headers["content-type"].startswith("text/csv")
    assert answer.headers["content-disposition"] == 'attachment; filename="-cmd.csv"'
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["value"] for row in rows] == ["-0.5", "0.5", "0.7"]
    assert [row["failure"] for row in rows] == ["'" + evil, "'-1+1", "a,\n"]


def test_the_statistics_of_the_cache_are_shown(service: HttpService) -> None:
    answer = service.client.get("/v1/cache", headers=service.headers("viewer"))
    assert answer.status_code in (200, 404)
