"""lm-eval by itself on a local HellaSwag file: what ours is compared with."""

import contextlib
import functools
import io
import time
from dataclasses import dataclass
from pathlib import Path

import datasets
import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from prunesearch.models.loading import LoadedModel
from prunesearch.objectives.calibration_data import read_jsonl

# Making one reads the thousands of task files that come with lm-eval.
_manager = functools.cache(TaskManager)


@dataclass(frozen=True)
class Stock:
    """What `lm_eval.simple_evaluate` gave.

    Attributes:
        log_likelihoods: of every request, document by document.
        seconds: wall time of the call, the building of its requests included.
    """

    metrics: dict[str, float]
    log_likelihoods: list[float]
    seconds: float


def stock_hellaswag(loaded: LoadedModel, data: Path, limit: int, batch_size: int) -> Stock:
    """Evaluate the model as it stands."""
    splits = {"validation": datasets.Dataset.from_list(read_jsonl(data))}
    overrides = {"custom_dataset": lambda **_: splits, "training_split": None}
    task = {"group": "local", "task": [{"task": "hellaswag", **overrides}]}
    lm = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=batch_size)
    with contextlib.redirect_stderr(io.StringIO()):
        tasks = _manager().load([task])
        start = time.perf_counter()
        outcome = lm_eval.simple_evaluate(lm, tasks=list(tasks["tasks"].values()), limit=limit)
        seconds = time.perf_counter() - start
    results = outcome["results"]["hellaswag"]
    rows = sorted(outcome["samples"]["hellaswag"], key=lambda row: row["doc_id"])
    values = [float(answer[0]) for row in rows for answer in row["filtered_resps"]]
    return Stock({name: results[f"{name},none"] for name in ("acc", "acc_norm")}, values, seconds)
