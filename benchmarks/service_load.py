"""Does the service lose or double anything when it is killed, loaded, fuzzed or attacked?

    python -m benchmarks.service_load --json benchmarks/results/service_load.json

Each part is a module of `benchmarks.service_load_parts`. `--part NAME` measures one of them. The
service runs in processes of its own, in a folder of its own, with a tiny model.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import optuna

from benchmarks.service_load_parts import attacks, database, fuzzing, kills, streams
from benchmarks.support.record import Record, arguments

Part = Callable[[Record, Path], None]
"""Function that adds the figures of a part to the record. The folder is empty, and its own."""
PARTS: Mapping[str, Part] = {
    "kills": kills.measure,
    "streams": streams.measure,
    "database": database.measure,
    "fuzzing": fuzzing.measure,
    "attacks": attacks.measure,
}
"""The parts by name, in the order in which they are measured."""


def main() -> None:
    """Run the benchmark."""
    options = arguments(
        __doc__ or "", {"--part": {"choices": sorted(PARTS), "help": "measure only this part"}}
    )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    record = Record("service_load", options.size)
    for name, measure in PARTS.items():
        if options.part in (None, name):
            scratch = Path(tempfile.mkdtemp(prefix=f"service-{name}-"))
            # The folder of a part that failed stays: it has the logs.
            measure(record, scratch)
            shutil.rmtree(scratch)
    record.finish(options.json)


if __name__ == "__main__":
    main()
