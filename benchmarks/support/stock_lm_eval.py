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


@functools.cache
def _manager() -> TaskManager:
    """Return lm-eval's index of one folder; that of all its tasks takes seconds to read."""
    folder = Path(lm_eval.tasks.__file__).parent / "hellaswag"
    return TaskManager(include_path=str(folder), include_defaults=False)


@dataclass(frozen=True)
class Stock:
    """What `lm_eval.simple_evaluate` gave.

    Attributes:
        log_likelihoods: of every request, document by document.
        seconds: wall time of the call, the building of its requests included, the reading of
            task files not.
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
        outcome = lm_eval.simple_evaluate(
            lm, tasks=list(tasks["tasks"].values()), limit=limit, task_manager=_manager()
        )
        seconds = time.perf_counter() - start
    results = outcome["results"]["hellaswag"]
    rows = sorted(outcome["samples"]["hellaswag"], key=lambda row: row["doc_id"])
    values = [float(answer[0]) for row in rows for answer in row["filtered_resps"]]
    return Stock({name: results[f"{name},none"] for name in ("acc", "acc_norm")}, values, seconds)
