"""Do searched pruning rates beat fixed ones, what does a language model add to the search, and is
the result exactly what was scored?

    python -m benchmarks.rates --folder storage/rates --optimizer MODEL.gguf \\
        --json benchmarks/results/rates.json

Each part is a module of `benchmarks.rates_parts`; its README has the parts. `--part NAME` measures
one of them. Studies, evaluations, replies of the language model and the figures of finished parts
lie in `--folder`, so the same command continues, and several processes may run it at once.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import optuna
import torch
import transformers

from benchmarks.rates_parts import campaigns, endpoint, exact, large, mixed, plots, search, tables
from benchmarks.rates_parts.campaign import Campaign
from benchmarks.support.record import Record, arguments
from prunesearch.report.progress import ProgressView

Part = Callable[[Record, Campaign], None]
"""Function that adds the figures of a part to the record."""
PARTS: Mapping[str, Part] = {
    "exact": exact.measure,
    "endpoint": endpoint.measure,
    "search": search.measure,
    "mixed": mixed.measure,
    "large": large.measure,
}
"""The parts by name, in the order in which they are measured."""


def main() -> None:
    """Run the benchmark."""
    options = arguments(__doc__ or "", campaigns.OPTIONS | {"--part": _PART})
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    record = Record("rates", options.size)
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
        _measure(record, options, options.folder)
        return
    with tempfile.TemporaryDirectory(prefix="rates-") as scratch:
        _measure(record, options, Path(scratch))


_PART = {"choices": sorted(PARTS), "action": "append", "help": "measure only this part"}


def _measure(record: Record, options: argparse.Namespace, folder: Path) -> None:
    """Measure the parts that are asked for, and finish the record with those measured before."""
    with campaigns.opened(record, options, folder) as campaign, ProgressView():
        for name, measure in PARTS.items():
            if options.part is None or name in options.part:
                _measure_part(record, campaign, name, measure)
            else:
                _add_stored(record, folder, name)
    if not record.figures:
        raise SystemExit("no part was measured")
    record.finish(options.json)
    if options.json is not None:
        plots.draw(record.notes, options.json)
    if options.markdown is not None:
        options.markdown.write_text(tables.markdown(record.notes))


def _measure_part(record: Record, campaign: Campaign, name: str, measure: Part) -> None:
    """Measure a part, add it to the record, and keep its figures."""
    own = Record(record.benchmark, record.size)
    measure(own, campaign)
    stored = {"figures": own.figures, "targets": own.targets, "notes": own.notes}
    _stored(campaign.folder, name).write_text(json.dumps(stored, indent=1) + "\n")
    _add_stored(record, campaign.folder, name)


def _add_stored(record: Record, folder: Path, name: str) -> None:
    """Add the figures of a part that was measured before, if it was."""
    path = _stored(folder, name)
    if not path.exists():
        return
    stored = json.loads(path.read_text())
    record.figures |= stored["figures"]
    record.targets |= stored["targets"]
    record.notes |= stored["notes"]


def _stored(folder: Path, name: str) -> Path:
    return folder / f"part-{name}.json"


if __name__ == "__main__":
    main()
