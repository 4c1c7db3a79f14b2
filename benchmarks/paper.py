"""The source paper's experiment, on any model and with honest baselines.

    python -m benchmarks.paper --folder storage/paper --data FOLDER --workers 2 \\
        --json benchmarks/results/paper.json --markdown tables.md

PSO, WOA and the baselines remove 12.5, 25, 37.5 and 50 % of the blocks. Fitness is the normalised
accuracy on `--search-documents` HellaSwag documents. Winners are scored on `--documents` others,
before and after LoRA. All studies, the cache and all measurements lie in `--folder`, so the same
command continues, and several processes may run it at once. `--plan` prints what would be done, with
its predicted time. See `benchmarks/paper_parts/README.md`.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
import torch
import transformers

from benchmarks.paper_parts import plots, tables
from benchmarks.paper_parts.comparison import Comparison, Row, compare, rows_of
from benchmarks.paper_parts.experiment import PaperStudy
from benchmarks.paper_parts.measuring import Job, Measured, measure_all
from benchmarks.paper_parts.options import OPTIONS, experiment_of
from benchmarks.paper_parts.plan import make_plan
from benchmarks.paper_parts.published import contradictions, gigabytes
from benchmarks.paper_parts.timing import Times, measure_times
from benchmarks.paper_parts.winners import Trace, kl_ranking, read_trace, winners_of
from benchmarks.support.record import Record, arguments
from benchmarks.support.searches import left, run_all
from prunesearch.candidate import LayerSubset
from prunesearch.pipeline.session import open_session
from prunesearch.report.progress import ProgressView


def main() -> None:
    """Run the benchmark."""
    options = arguments(__doc__ or "", OPTIONS)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    record = Record("paper", options.size)
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
        _run(record, options, options.folder.resolve())
        return
    with tempfile.TemporaryDirectory(prefix="paper-") as scratch:
        _run(record, options, Path(scratch))


def _run(record: Record, options: argparse.Namespace, folder: Path) -> None:
    """Print the plan, search, measure, and write the results."""
    experiment, documents = experiment_of(record, options, folder)
    first = experiment.recipe(experiment.methods[0], experiment.ks[0], 0)
    studies = experiment.studies()
    with ProgressView(), open_session(first, experiment.options()) as session:
        if options.searched:
            studies = _complete(studies, folder)
        else:
            print(make_plan(session, experiment, documents).text(), flush=True)
        if options.plan:
            return
        order = kl_ranking(session, experiment)
    with ProgressView():
        if not options.searched:
            run_all(studies, experiment.workers)
        traces = [read_trace(study) for study in studies]
        winners = winners_of(traces, order, experiment)
        dense = Job(LayerSubset.of(experiment.n_layers).text, healed=False)
        jobs = [dense]
        for winner in winners:
            jobs.append(Job(winner.candidate.text, healed=False))
        if experiment.heal_steps:
            for winner in winners:
                if winner.method in experiment.healed:
                    jobs.append(Job(winner.candidate.text, healed=True))
        measured = measure_all(experiment, jobs)
        with open_session(first, experiment.options()) as session:
            times = measure_times(session, experiment)
    rows = rows_of(experiment, winners, traces, measured)
    comparisons = compare(rows)
    _add(record, rows, comparisons, measured[dense], times)
    _write(record, options, folder, traces, rows, comparisons, measured[dense], times)


def _complete(studies: Sequence[PaperStudy], folder: Path) -> list[PaperStudy]:
    """Return the studies that have all their trials, and name the others.

    Raises:
        SystemExit: there are none.
    """
    unfinished = left(studies)
    complete = [study for study in studies if study not in unfinished]
    if not complete:
        raise SystemExit(f"--searched: {folder} has no complete study; leave --searched out")
    for study in unfinished:
        print(f"left out, because it is not complete: {study.name}")
    return complete


def _add(
    record: Record,
    rows: Sequence[Row],
    comparisons: Sequence[Comparison],
    dense: Measured,
    times: dict[int, Times],
) -> None:
    """Add the figures and the notes."""
    for dropped in (10, 20, 30, 40):
        record.add(f"llama_3_1_70b_gigabytes_without_{dropped}_blocks", gigabytes(dropped))
    record.add("dense_acc_norm", dense.acc_norm)
    record.add("dense_acc_norm_stderr", dense.stderr)
    for k, each in times.items():
        record.add(f"k{k}_prefill_ms", each.prefill_ms.mean)
        record.add(f"k{k}_decode_ms", each.decode_ms.mean)
    notes: list[dict[str, Any]] = []
    for row in rows:
        name = f"k{row.k}_{row.method.replace('-', '_')}"
        record.add(f"{name}_acc_norm", row.accuracy(healed=False).mean)
        if row.healed:
            record.add(f"{name}_healed_acc_norm", row.accuracy(healed=True).mean)
        if row.searched_on:
            mean = sum(row.searched_on) / len(row.searched_on)
            record.add(f"{name}_searched_{'kl' if row.by_kl else 'on'}", mean)
        notes.append(
            {
                "k": row.k,
                "method": row.method,
                "dropped": [winner.candidate.text for winner in row.winners],
                "searched_on": row.searched_on,
                "held_out": [each.acc_norm for each in row.pruned],
                "healed": [each.acc_norm for each in row.healed],
                "heal_loss": [each.heal_loss for each in row.healed],
                "heal_seconds": [each.heal_seconds for each in row.healed],
                "evaluations": row.evaluations,
                "seconds": row.seconds,
                "bytes": row.pruned[0].bytes,
                "params": row.pruned[0].params,
            }
        )
    record.notes["rows"] = notes
    record.notes["tests"] = [asdict(each) for each in comparisons]
    record.notes["contradictions"] = contradictions()
    for first in dict.fromkeys(each.first for each in comparisons):
        own = [each for each in comparisons if each.first == first]
        for word in ("better", "worse", "not told apart"):
            count = sum(each.verdict == word for each in own)
            record.add(f"{first.replace('-', '_')}_{word.replace(' ', '_')}", count)


def _write(
    record: Record,
    options: argparse.Namespace,
    folder: Path,
    traces: Sequence[Trace],
    rows: Sequence[Row],
    comparisons: Sequence[Comparison],
    dense: Measured,
    times: dict[int, Times],
) -> None:
    """Write the document, the tables and the figures."""
    pages = folder / "figures"
    if options.json is not None:
        pages = options.json.with_suffix("")
    # Latencies that another machine predicted are not drawn beside those that this one measured.
    comparable = {} if options.searched else times
    for path in plots.draw(pages, traces, rows, dense, comparable):
        print(f"wrote {path}")
    text = tables.markdown(rows, comparisons, dense, times)
    (folder / "tables.md").write_text(text)
    if options.markdown is not None:
        options.markdown.write_text(text)
    print(text)
    record.finish(options.json)


if __name__ == "__main__":
    main()
