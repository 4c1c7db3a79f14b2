"""Do more workers finish sooner, and is nothing lost when they die?

Candidates are scored by a stand-in of fixed cost: it sleeps, so that the workers do not compete for
the cores of one machine. What is measured is what the engine adds to the scoring.

    python -m benchmarks.scale_out --json benchmarks/results/scale_out.json

Each part is a module of `benchmarks.scale_out_parts`. `--part NAME` measures one of them.
"""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import optuna

from benchmarks.scale_out_parts import ray_failures, ray_workers, shared_leases
from benchmarks.support.record import Record, arguments

Part = Callable[[Record, Path], None]
"""Function that adds the figures of a part to the record. The folder is empty, and its own."""
PARTS: Mapping[str, Part] = {
    "ray-workers": ray_workers.measure,
    "ray-failures": ray_failures.measure,
    "shared-leases": shared_leases.measure,
}
"""The parts by name, in the order in which they are measured."""


def main() -> None:
    """Run the benchmark."""
    options = arguments(
        __doc__ or "", {"--part": {"choices": sorted(PARTS), "help": "measure only this part"}}
    )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    record = Record("scale_out", options.size)
    for name, measure in PARTS.items():
        if options.part in (None, name):
            with tempfile.TemporaryDirectory(prefix="scale-out-") as scratch:
                measure(record, Path(scratch))
    record.finish(options.json)


if __name__ == "__main__":
    main()
