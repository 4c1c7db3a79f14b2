"""Studies of a formula, written straight to a SQLite database: 10,000 trials take seconds.

The loss of a subset is a sum over its layers and pairs of layers, plus noise. A trial exchanges one
layer of one of the best trials before it, so that a study improves like a search.
"""

import json
import sqlite3
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.exceptions import ExperimentalWarning
from optuna.study import StudyDirection

from prunesearch.config.recipe import Recipe
from prunesearch.runtime.json_values import Json
from prunesearch.studies import persistence

START = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
_CHOICE = '{"name": "CategoricalDistribution", "attributes": {"choices": [false, true]}}'
_BLOCK = 3_540_096  # parameters of a block of SmolLM2-135M
_OTHER = 28_311_552
_BLOCK_MS, _OTHER_MS = 2.0, 9.0
_ERROR = 0.004  # of a score
_PARENTS = 8  # the best trials, one of which a trial is derived from


@dataclass(frozen=True)
class SyntheticStudy:
    """A study to write.

    Attributes:
        name: name of the study.
        sampler: name of its sampler.
        seed: seed of its trials. The formula is the same for all seeds.
        layers: number of blocks of the model.
        drop: number of blocks that a candidate drops.
        trials: number of finished trials.
        asked: number of trials that was asked for; None for as many.
        running: number of trials that a stopped search left.
        pareto: whether the study weighs quality against size, with 1 to `drop` blocks.
        model: name and content of the model.
        greed: share of trials that are derived from a good one; the others are random.
    """

    name: str
    sampler: str = "pso"
    seed: int = 0
    layers: int = 12
    drop: int = 3
    trials: int = 60
    asked: int | None = None
    running: int = 0
    pareto: bool = False
    model: str = "tiny"
    greed: float = 0.8


@dataclass(frozen=True)
class _Formula:
    single_N: NDArray[np.float64]
    pair_NN: NDArray[np.float64]

    @classmethod
    def of(cls, layers: int) -> "_Formula":
        rng = np.random.default_rng(layers)
        # The first and the last layers matter most.
        place_N = np.linspace(-1, 1, layers)
        single_N = 0.02 + 0.5 * place_N**4 + 0.08 * rng.random(layers)
        pair_NN = np.triu(rng.normal(0, 0.02, (layers, layers)), 1)
        return cls(single_N, pair_NN)

    def loss(self, subset: NDArray[np.intp]) -> float:
        pairs = self.pair_NN[np.ix_(subset, subset)].sum()
        return float(max(0.01, self.single_N[subset].sum() + pairs))


def write_study(path: Path, wanted: SyntheticStudy) -> None:
    """Add a study to a database, which is created if it does not exist."""
    storage = persistence.open_storage(f"sqlite:///{path}", create=True)
    values = ("kl", "bytes") if wanted.pareto else ("kl",)
    study = optuna.create_study(
        storage=storage,
        study_name=wanted.name,
        directions=[StudyDirection.MINIMIZE] * len(values),
    )
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        study.set_metric_names(list(values))
    drop = f"pareto:{wanted.drop}" if wanted.pareto else str(wanted.drop)
    recipe = Recipe(
        model=f"/home/someone/{wanted.model}",
        search={"drop": drop, "sampler": wanted.sampler, "seed": wanted.seed},
    )
    contents = {"model content": f"fingerprint of {wanted.model}", "data content": "d" * 64}
    study.set_user_attr("identity", json.dumps({**recipe.identity(), **contents}))
    study.set_user_attr("recipe", json.dumps(recipe.document()))
    dense = {"metric": "kl", "metrics": {"kl": 0.0, "perplexity": 17.2}}
    study.set_user_attr("dense", json.dumps(dense))
    block_ms = [_BLOCK_MS] * wanted.layers
    latency = {"block_ms": block_ms, "attention_ms": block_ms, "other_ms": _OTHER_MS}
    study.set_user_attr("latency_model", json.dumps(latency))
    study.set_user_attr("asked_trials", wanted.asked or wanted.trials)
    storage.engine.dispose()
    with sqlite3.connect(path) as connection:
        query = "SELECT study_id FROM studies WHERE study_name = ?"
        (study_id,) = connection.execute(query, (wanted.name,)).fetchone()
        _write_trials(connection, study_id, wanted)
    connection.close()


def _write_trials(connection: sqlite3.Connection, study_id: int, wanted: SyntheticStudy) -> None:
    rng = np.random.default_rng([wanted.seed, *wanted.sampler.encode()])
    formula = _Formula.of(wanted.layers)
    (last,) = connection.execute("SELECT COALESCE(MAX(trial_id), 0) FROM trials").fetchone()
    rows: dict[str, list[tuple[Json, ...]]] = {
        name: [] for name in ("trials", "values", "params", "user", "system")
    }
    best: list[tuple[float, int, NDArray[np.intp]]] = []
    seen: set[str] = set()
    for number in range(wanted.trials):
        trial_id = last + 1 + number
        subset, parents = _subset(rng, wanted, best)
        loss = max(0.0, formula.loss(subset) + rng.normal(0, _ERROR))
        best = sorted([*best, (loss, number, subset)], key=lambda entry: entry[:2])[:_PARENTS]
        dropped = ",".join(str(layer) for layer in subset)
        _add(rows, trial_id, study_id, number, wanted, subset, loss, dropped in seen, parents)
        seen.add(dropped)
    for number in range(wanted.trials, wanted.trials + wanted.running):
        start = str(START + timedelta(seconds=number))
        rows["trials"].append((last + 1 + number, number, study_id, "RUNNING", start, None))
    for statement, name in (
        ("trials VALUES (?, ?, ?, ?, ?, ?)", "trials"),
        (
            "trial_values (trial_id, objective, value, value_type) VALUES (?, ?, ?, 'FINITE')",
            "values",
        ),
        (
            "trial_params (trial_id, param_name, param_value, distribution_json) "
            "VALUES (?, ?, ?, ?)",
            "params",
        ),
        ("trial_user_attributes (trial_id, key, value_json) VALUES (?, ?, ?)", "user"),
        ("trial_system_attributes (trial_id, key, value_json) VALUES (?, ?, ?)", "system"),
    ):
        connection.executemany(f"INSERT INTO {statement}", rows[name])


def _subset(
    rng: np.random.Generator,
    wanted: SyntheticStudy,
    best: list[tuple[float, int, NDArray[np.intp]]],
) -> tuple[NDArray[np.intp], list[int]]:
    """The next subset, and the number of the trial that it is derived from."""
    count = int(rng.integers(1, wanted.drop + 1)) if wanted.pareto else wanted.drop
    if not best or wanted.pareto or rng.random() > wanted.greed:
        return np.sort(rng.choice(wanted.layers, count, replace=False)), []
    _, parent, subset = best[int(rng.integers(len(best)))]
    kept = rng.permutation(subset)[1:]
    others = np.setdiff1d(np.arange(wanted.layers), subset)
    return np.sort(np.append(kept, rng.choice(others))), [parent]


def _add(
    rows: dict[str, list[tuple[Json, ...]]],
    trial_id: int,
    study_id: int,
    number: int,
    wanted: SyntheticStudy,
    subset: NDArray[np.intp],
    loss: float,
    hit: bool,
    parents: list[int],
) -> None:
    """Add the rows of one finished trial."""
    start = START + timedelta(seconds=number)
    times = str(start.replace(tzinfo=None)), str(start.replace(tzinfo=None) + timedelta(seconds=1))
    rows["trials"].append((trial_id, number, study_id, "COMPLETE", *times))
    params = _OTHER + _BLOCK * (wanted.layers - len(subset))
    values = (loss, float(2 * params)) if wanted.pareto else (loss,)
    for objective, value in enumerate(values):
        rows["values"].append((trial_id, objective, value))
    drops = set(subset.tolist())
    for layer in range(wanted.layers):
        rows["params"].append((trial_id, f"drop_{layer:02}", float(layer in drops), _CHOICE))
    seconds = 0.001 if hit else 0.9
    attributes: dict[str, Json] = {
        "dropped": ",".join(str(layer) for layer in subset),
        "cache": "hit" if hit else "computed",
        "seconds": seconds,
        "kl": round(loss, 6),
        "kl_stderr": _ERROR,
        "perplexity": round(17.2 * float(np.exp(loss)), 4),
        "params": params,
        "bytes": 2 * params,
        "latency_ms": _OTHER_MS + _BLOCK_MS * (wanted.layers - len(subset)),
    }
    if hit:
        attributes["saved_seconds"] = 0.9
    for key, attribute in attributes.items():
        rows["user"].append((trial_id, key, json.dumps(attribute)))
    if parents:
        state = json.dumps({"parents": parents})
        rows["system"].append((trial_id, "ps:s", json.dumps(state)))
