"""How fast is scoring on a GPU, and is it right there?

A Llama of 8B parameters and one of SmolLM2's shape, with random weights that are made on the
device, so nothing is downloaded. Checks of every path come first: a wrong number ends the run.
Then the rate of matrix products, KL of one candidate and of generations against plain transformers,
HellaSwag against lm-eval, kernels that scoring chooses between, the time per token by the size of a
pass, and blocks in host memory. The document is written after every part.

    python -m benchmarks.gpu --data hellaswag.jsonl.bz2 --tokenizer FOLDER --json OUT.json
    python -m benchmarks.gpu --quick --json OUT.json            # 90 seconds
    python -m benchmarks.gpu --part kl --part tasks --json OUT.json
"""

import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.gpu_parts import calibration, checks, kernels, matmul, sizes, tasks
from benchmarks.gpu_parts.clock import FAILURES, Meter
from benchmarks.gpu_parts.shapes import LLAMA_8B, SMOLLM2, TINY_8B, TINY_SMALL
from benchmarks.support.inputs import hellaswag
from benchmarks.support.record import Record, arguments
from tests.support.models import byte_tokenizer


@dataclass(frozen=True)
class Part:
    """A part of the benchmark.

    Attributes:
        name: name on the command line.
        run: function that measures it.
        seconds: time that it is not started without, in full and in a quick run.
    """

    name: str
    run: Callable[[Meter], None]
    seconds: tuple[float, float]


PARTS = (
    Part("checks", checks.measure, (20, 10)),
    Part("matmul", matmul.measure, (5, 5)),
    Part("kl", calibration.measure_large, (40, 10)),
    Part("tasks", tasks.measure_large, (40, 10)),
    Part("small-kl", calibration.measure_small, (15, 5)),
    Part("curves", sizes.measure_curves, (20, 8)),
    Part("offload", sizes.offload, (30, 10)),
    Part("compiled", calibration.measure_compiled, (90, 30)),
    Part("small-tasks", tasks.measure_small, (30, 10)),
    Part("kernels", kernels.measure, (60, 15)),
)
"""All parts, the most important one first."""


def main() -> None:
    """Run the benchmark."""
    options = arguments(
        "Scoring on a GPU: an 8B Llama and SmolLM2's shape, with random weights",
        {
            "--data": {
                "type": Path,
                "help": "HellaSwag .jsonl[.gz|.bz2]; default: made-up lengths",
            },
            "--tokenizer": {"type": Path, "help": "folder of a tokenizer for the documents"},
            "--seconds": {"type": float, "help": "time of the run; default: 600, quick 90"},
            "--part": {
                "action": "append",
                "choices": [part.name for part in PARTS],
                "help": "run this part only (repeatable)",
            },
            "--go-on": {"action": "store_true", "help": "measure also after a failed check"},
            "--device": {"help": "torch device; default: cuda if there is one"},
        },
    )
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    record = Record("gpu", options.size)
    chosen = [part for part in PARTS if not options.part or part.name in options.part]
    with tempfile.TemporaryDirectory() as scratch:
        data = options.data
        if record.size == "smoke":
            data = hellaswag(record, data, Path(scratch))
        seconds = options.seconds or record.by_size(600.0, 90.0, 600.0)
        meter = _meter(record, options.device, data, options.tokenizer, seconds)
        failed = _run(meter, chosen, options.json, options.go_on)
    meter.record.finish(options.json)
    if failed:
        print("failed: " + ", ".join(failed), file=sys.stderr)
        raise SystemExit(1)


def _meter(
    record: Record, device: str | None, data: Path | None, tokenizer: Path | None, seconds: float
) -> Meter:
    """Describe the machine and the shapes that are measured."""
    smoke = record.size == "smoke"
    default = "cuda" if torch.cuda.is_available() and not smoke else "cpu"
    place = torch.device(device or default)
    record.notes["device"] = str(place)
    if place.type == "cuda":
        found = torch.cuda.get_device_properties(place)
        record.notes["device"] = found.name
        record.notes["memory, GiB"] = round(found.total_memory / 2**30, 1)
    read: PreTrainedTokenizerBase | None = byte_tokenizer(("t", "h")) if smoke else None
    if tokenizer is not None:
        read = AutoTokenizer.from_pretrained(tokenizer)
    big, small = (TINY_8B, TINY_SMALL) if smoke else (LLAMA_8B, SMOLLM2)
    return Meter(record, place, big, small, time.monotonic() + seconds, data, read)


def _run(meter: Meter, parts: list[Part], path: Path | None, go_on: bool) -> list[str]:
    """Run parts while time is left, and write the document after each.

    Returns:
        The names of the parts that failed.
    """
    failed: list[str] = []
    for part in parts:
        needed = meter.record.by_size(*part.seconds, 0.0)
        if meter.left < needed:
            meter.record.notes[f"part {part.name}"] = "no time was left"
            continue
        start = time.monotonic()
        try:
            part.run(meter)
        except FAILURES as error:
            failed.append(part.name)
            meter.record.notes[f"part {part.name}"] = f"{type(error).__name__}: {error}"[:2000]
            traceback.print_exc()
        spent = time.monotonic() - start
        meter.record.add(f"part_{part.name.replace('-', '_')}_seconds", spent)
        print(f"{part.name}: {spent:.1f} s", flush=True)
        if path is not None:
            path.write_text(json.dumps(meter.record.document(), indent=2) + "\n")
        if part.name in failed and part.name == "checks" and not go_on:
            break
    return failed


if __name__ == "__main__":
    main()
