"""Weight streaming: a model of 8 GiB scored within 3 GiB, and what `prunesearch plan` predicted of
it.

    python -m benchmarks.streaming --json FILE

A Llama-shaped model with random weights in bfloat16 is written to a temporary folder, shard by
shard. Processes of their own then score 16 candidates (a quarter of the blocks dropped at random)
on it, each with all its address space limited to 3 GiB (RLIMIT_AS: libraries, stacks and mapped
files count, so it is harder than a limit on resident memory): streamed together, then again with
half of the hidden states in files, one by one, and loaded plainly, which must fail. One without a
limit scores the same candidates with all weights in memory, where the machine has room for that.
The page cache is emptied of the checkpoint before each timed part. Numbers are computed in
bfloat16, and in float32 on a CPU without instructions for it.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.support.checkpoints import VOCABULARY, Shape, forget, write_model
from benchmarks.support.record import Record, arguments
from prunesearch.candidate import LayerSubset
from prunesearch.errors import PruneSearchError
from prunesearch.execution.memory_plan import draw, plan_memory
from prunesearch.execution.plan_types import Asked, Dtype
from prunesearch.execution.shared_forward import Forward
from prunesearch.models.bf16_cpu import wide_products, widens
from prunesearch.models.layers import StreamedLayers
from prunesearch.models.loading import LoadedModel, load
from prunesearch.models.streaming import open_streamed
from prunesearch.objectives.base import ChunkWork
from prunesearch.objectives.calibration import CalibrationObjective
from prunesearch.objectives.metrics.kl import KL
from prunesearch.space import SearchSpace

LIMIT = 3 * 2**30
CANDIDATES, TOKENS, DROP = 16, 64, "25%"
LARGE, QUICK, SMOKE = Shape(88), Shape(36), Shape(8, hidden=128, intermediate=256)
"""Under the limit the first two cannot be loaded plainly: their weights alone are larger."""


def score(
    loaded: LoadedModel,
    objective: CalibrationObjective,
    lots: list[list[LayerSubset]],
    state_memory: int,
) -> dict[str, Any]:
    """Score lots of candidates one after the other."""
    forward = Forward(loaded.model, loaded.layers, state_memory)
    before = loaded.layers.bytes_read if isinstance(loaded.layers, StreamedLayers) else 0
    start = time.perf_counter()
    with wide_products():
        found = {}
        for lot in lots:
            work = [ChunkWork(chunk, lot) for chunk in objective.chunks]
            for result in objective.score(work, forward):
                found[f"{result.candidate.text} {result.chunk.index}"] = result.rows
    seconds = time.perf_counter() - start
    after = loaded.layers.bytes_read if isinstance(loaded.layers, StreamedLayers) else 0
    return {
        "results": found,
        "seconds": seconds,
        "bytes_read": after - before,
        "bytes_spilled": forward.spilled,
        "saved": forward.work_counter.saved,
    }


def child(folder: Path, what: str, dtype: str, out: Path) -> None:
    """Open the model in one way, score in one or two, and write down what came out."""
    start = time.perf_counter()
    try:
        loaded = (
            load(str(folder), dtype=dtype)
            if what == "memory"
            else open_streamed(str(folder), dtype=dtype)
        )
    except (PruneSearchError, MemoryError) as error:
        out.write_text(json.dumps({"failure": str(error) or "MemoryError"}))
        return
    document: dict[str, Any] = {"opened": time.perf_counter() - start}
    ids = torch.arange(TOKENS) * 7919 % VOCABULARY
    objective = CalibrationObjective(loaded, ids[None], KL())
    generation = draw(SearchSpace.parse(loaded.n_layers, DROP), CANDIDATES)
    score(loaded, objective, [[LayerSubset.of(loaded.n_layers)]], 2**30)  # the reference logits
    forget(folder)
    lots = [[candidate] for candidate in generation] if what == "one by one" else [generation]
    document |= score(loaded, objective, lots, 2**30)
    if what == "streamed":
        state = TOKENS * loaded.model.config.hidden_size * loaded.model.dtype.itemsize
        document["spilled"] = score(loaded, objective, [generation], CANDIDATES // 2 * state)
    status = Path("/proc/self/status").read_text().split("VmHWM:")[1]
    out.write_text(json.dumps(document | {"peak": int(status.split()[0]) * 1024}))


def run(folder: Path, what: str, dtype: str, limited: bool = True) -> dict[str, Any]:
    """Run `child` in a process of its own."""
    out = folder / "out.json"
    out.unlink(missing_ok=True)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))

    words = [
        sys.executable,
        "-m",
        "benchmarks.streaming",
        "--child",
        what,
        "--folder",
        str(folder),
        "--dtype",
        dtype,
    ]
    done = subprocess.run(
        words, preexec_fn=limit if limited else None, capture_output=True, text=True, check=False
    )
    if not out.is_file():
        return {"failure": (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]}
    found: dict[str, Any] = json.loads(out.read_text().replace(str(folder), "MODEL"))
    return found


def numbers(results: dict[str, Any]) -> Iterator[float]:
    """All stored numbers, in the order of candidates."""
    for key in sorted(results):
        for row in results[key]:
            yield from row


def difference(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Largest difference between the numbers of two runs."""
    assert a["results"].keys() == b["results"].keys()
    return max(
        abs(x - y) for x, y in zip(numbers(a["results"]), numbers(b["results"]), strict=True)
    )


def available() -> int:
    """Bytes of memory that a new process may take."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def benchmark(record: Record, folder: Path) -> None:
    """Write the model, plan, run, compare."""
    weights = write_model(folder, record.by_size(LARGE, QUICK, SMOKE))
    forget(folder)
    dtype: Dtype = "float32" if widens() else "bfloat16"
    planned = plan_memory(str(folder), Asked(LIMIT, CANDIDATES, DROP, TOKENS, dtype=dtype))
    mode = next(mode for mode in planned.modes if mode.offload == "disk")
    shown = json.loads(json.dumps(asdict(planned)).replace(str(folder), "MODEL"))
    record.notes |= {
        "dtype": dtype,
        "plan": shown,
        "limit": "RLIMIT_AS of 3 GiB, set before Python starts",
    }
    record.add("weights_gib", weights / 2**30)
    plain = run(folder, "memory", dtype)
    record.notes["plain loading under the limit"] = plain.get("failure", "loaded")
    # A tiny model can be loaded under any limit.
    bound = None if record.size == "smoke" else "== 1"
    record.add("plain_loading_failed", float("failure" in plain), bound)
    streamed, alone = run(folder, "streamed", dtype), run(folder, "one by one", dtype)
    for part in (streamed, alone):
        if "failure" in part:
            raise SystemExit(f"streaming failed: {part['failure']}")
    record.add("bytes_read_per_generation_to_weights", streamed["bytes_read"] / weights, "<= 1.2")
    record.add("peak_rss_gib", streamed["peak"] / 2**30, "<= 3")
    record.add("predicted_peak_gib", mode.memory / 2**30)
    record.add("predicted_to_measured_peak", mode.memory / streamed["peak"])
    record.add("seconds_to_open", streamed["opened"])
    record.add("seconds_per_generation", streamed["seconds"])
    record.add("predicted_seconds", mode.seconds)
    record.add("predicted_to_measured_seconds", mode.seconds / streamed["seconds"])
    record.add("seconds_one_by_one", alone["seconds"])
    record.add("one_by_one_to_together_seconds", alone["seconds"] / streamed["seconds"])
    record.add("one_by_one_bytes_read_to_weights", alone["bytes_read"] / weights)
    record.add("block_forwards_saved", streamed["saved"])
    record.add("spilled_mib", streamed["spilled"]["bytes_spilled"] / 2**20)
    record.add("max_difference_spilled", difference(streamed, streamed["spilled"]), "== 0")
    record.add("max_difference_one_by_one", difference(streamed, alone), "== 0")
    in_memory = weights * (2 if dtype == "float32" else 1)
    if available() < in_memory + 2**30:
        record.notes["in memory"] = f"not run: {in_memory / 2**30:.1f} GiB are not free"
        whole = run(folder, "streamed", dtype, limited=False)
    else:
        whole = run(folder, "memory", dtype, limited=False)
        record.add("seconds_in_memory_unlimited", whole["seconds"])
        record.add("peak_rss_gib_in_memory_unlimited", whole["peak"] / 2**30)
        resident = next(mode for mode in planned.modes if mode.offload == "none")
        record.add("predicted_peak_gib_in_memory", resident.memory / 2**30)
        record.add("predicted_seconds_in_memory", resident.seconds)
    record.add("max_difference_to_unlimited", difference(streamed, whole), "== 0")


def main() -> None:
    """Run the benchmark, or one part of it in a process of its own."""
    options = arguments(
        __doc__ or "",
        {
            "--child": {"help": argparse.SUPPRESS},
            "--folder": {
                "type": Path,
                "help": "where to put the model; default a temporary folder",
            },
            "--dtype": {"help": argparse.SUPPRESS},
        },
    )
    if options.child is not None:
        child(options.folder, options.child, options.dtype, options.folder / "out.json")
        return
    record = Record("streaming", options.size)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="prunesearch-streaming-") as folder:
        benchmark(record, Path(folder))
    record.finish(options.json)


if __name__ == "__main__":
    main()
