"""The report of a job as tables."""

import json

from prunesearch.runtime.json_values import Json, JsonObject
from prunesearch.service.web.report_tables import Table, report_view

COST = {"params": 200, "bytes": 2048, "latency_ms": 10.0}
SEARCH: JsonObject = {
    "study": "s", "trials": 12, "hits": 2, "computed": 10, "failed": 0, "adopted": 1, "seconds": 61.0,
    "latency_measured": True, "front": [],
    "dense": {"dropped": "none", "metrics": {"kl": 0.0}, "stderr": {"kl": 0.0}, "cost": COST},
    "best": {"dropped": "1,3", "metrics": {"kl": 0.5}, "stderr": {"kl": 0.0123},
             "cost": {"params": 150, "bytes": 1536, "latency_ms": 8.0}},
    "paired": {"metric": "acc", "documents": 100, "difference": -0.01, "stderr": 0.002},
}  # fmt: skip
RECOVERY: JsonObject = {
    "losses": {"dense": 2.0, "pruned": 3.0},
    "compensation": {"recovered": 0.4, "compensated": {"cross_entropy": 2.6},
                     "gaps": [{"dropped": "1", "method": "linear", "loss_before": 3.0, "loss_after": 2.6, "seconds": 1.0}]},
    "healed": {"steps": 8, "planned": 10, "best_step": 6, "tokens": 1024, "seconds": 3.0, "peak_memory": 2**20,
               "before": 2.6, "after": 2.2, "diverged": False,
               "watched_loss": [[0, 2.6], [8, 2.2]], "held_out_loss": [[0, 2.6], [8, 2.2]]},
    "finalists": [{"candidate": "1,3", "place": 1, "pruned": 3.0, "compensated": 2.6, "healed": 2.3, "seconds": 2.0}],
    "export": {"form": "plain", "dropped": "1,3", "params": 150, "bytes": 1536,
               "verification": {"prefill_difference": 0.0, "allowed": 0.001, "decode_difference": None, "weights": 9}},
    "evaluation": {"metrics": {"perplexity": 9.0}, "stderr": {}, "params": 150, "bytes": 1536},
}  # fmt: skip


def named(result: JsonObject) -> dict[str, Table]:
    view = report_view(result)
    assert view is not None
    return {table.title: table for table in view.tables}


def test_a_search_is_compared_with_the_dense_model() -> None:
    view = report_view(SEARCH)
    assert view is not None
    assert view.sentence == (
        "The best of 12 trials drops layers 1,3. It has 75.0% of the dense model's parameters and "
        "takes 80.0% of its time."
    )
    compared, paired, run = view.tables
    assert compared.rows == (
        ("KL to dense (nats/token)", "0", "0.500 ± 0.012"),
        ("parameters", "200", "150"),
        ("size", "2.0 KiB", "1.5 KiB"),
        ("latency, measured", "10.00 ms", "8.00 ms"),
    )
    assert paired.rows == (("acc", "-0.0100 ± 0.0020", "100"),)
    assert run.rows == (
        ("trials", "12"), ("evaluated in this run", "10"), ("found in the cache", "2"),
        ("begun by an interrupted run", "1"), ("duration", "1 min 1 s"),
    )  # fmt: skip


def test_a_noisy_search_says_how_its_best_was_decided() -> None:
    finalists: list[Json] = [
        {"trial": 3, "dropped": "1,3", "value": 0.41, "estimate": 0.4, "stderr": 0.02,
         "documents": 400, "fresh": 0.38, "fresh_stderr": 0.01},
        {"trial": 5, "dropped": "1,2", "value": 0.46, "estimate": 0.39, "stderr": 0.02},
    ]  # fmt: skip
    made: JsonObject = {
        "trials": 12, "documents": 100, "chosen": 3, "naive": 5, "finalists": finalists,
    }  # fmt: skip
    view = report_view({**SEARCH, "recommendation": made})
    assert view is not None
    assert "Confirmed: trial 3, acc 0.3800" in view.sentence
    assert "Naive best: trial 5" in view.sentence
    # What a server sends may be damaged.
    damages: list[Json] = [{"trials": 12}, {"trials": "12"}, [], 7]
    for damaged in damages:
        view = report_view({**SEARCH, "recommendation": damaged})
        assert view is not None
        assert "onfirmed" not in view.sentence


def test_a_recovery_shows_its_held_out_losses() -> None:
    tables = named({**SEARCH, **RECOVERY})
    recovered = tables["Recovery: loss on held-out text, nats per token"]
    assert recovered.rows == (
        ("dense", "2.000"), ("pruned", "3.000"), ("compensated", "2.600"),
        ("before healing", "2.600"), ("healed", "2.200"),
    )  # fmt: skip
    assert ("recovered by compensation", "40.0%") in tables["The recovery"].rows
    assert tables["Compensated gaps"].rows[0][:2] == ("1", "linear")
    assert tables["Evaluation of the result"].rows[0] == ("perplexity", "9.000")
    assert ("largest difference of a logit", "0 (allowed 0.001)") in tables["Verified export"].rows
    view = report_view({**SEARCH, **RECOVERY})
    assert view is not None
    assert len(view.charts) == 1  # both losses are the same here


def test_parts_that_are_not_known_are_left_out() -> None:
    assert report_view(None) is None
    assert report_view({}) is None
    assert report_view({"best": 3, "dense": [], "export": "x", "finalists": {"a": 1}}) is None
    # Every part may be replaced by something else.
    whole: JsonObject = {**SEARCH, **RECOVERY}
    for key in whole:
        for other in (None, 3, "text", [1], {"metrics": {"kl": "x"}}, [[1, 2, 3]]):
            report_view(json.loads(json.dumps({**whole, key: other})))


def test_a_front_is_counted() -> None:
    view = report_view({**SEARCH, "front": [{"number": 1}, {"number": 2}]})
    assert view is not None
    assert view.sentence == "2 of 12 trials are on the front."
