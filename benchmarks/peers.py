"""Published removal sets on published protocols, so that our numbers stand beside the literature.

    python -m benchmarks.peers meta-llama/Meta-Llama-3-8B --dtype float16 \\
        --json benchmarks/results/peers.json

The sets of EvoPress, ShortGPT and Shortened LLaMA are scored as fixed candidates with WikiText-2 and
C4, and the published perplexities stand beside ours. Llama-2-7B, Llama-3-8B, Llama-3.1-8B and
Mistral-7B-v0.3 are recognised by their config, or named with `--as`. For any other model nothing is
published, so the two one-shot methods are run on it instead. Scores are kept in `--folder`, so the
same command continues. See `benchmarks/peers_parts/README.md`.
"""

import argparse
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.peers_parts.candidates import (
    Fixed,
    own_candidates,
    published_candidates,
    recognised,
)
from benchmarks.peers_parts.checks import check
from benchmarks.peers_parts.published import DENSE, MODELS
from benchmarks.peers_parts.scoring import Scored, score
from benchmarks.support.inputs import model_folder
from benchmarks.support.record import Record, arguments
from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.config.model import ModelSection
from prunesearch.config.run_options import RunOptions
from prunesearch.models.loading import LoadedModel
from prunesearch.objectives.protocols import PROTOCOLS
from prunesearch.pipeline.session import load_for
from prunesearch.report.progress import ProgressView
from tests.support.texts import prose

_OPTIONS: dict[str, dict[str, Any]] = {
    "model": {"nargs": "?", "help": "folder, hub id or .gguf file; default: SmolLM2-135M"},
    "--as": {"dest": "name", "help": f"it is one of {', '.join(MODELS)}"},
    "--folder": {"type": Path, "help": "where the cache is kept"},
    "--wikitext": {"help": "file with WikiText-2's raw test text; default: from the hub"},
    "--c4": {"help": "C4's en/c4-validation.00000-of-00008.json.gz; default: from the hub"},
    "--protocols": {"help": f"of {', '.join(PROTOCOLS)}; default: those of the papers"},
    "--windows": {"type": int, "help": "only this many windows: no published number compares"},
    "--dtype": {"default": "auto", "help": "auto, float16 (as in EvoPress), bfloat16, float32"},
    "--device": {"help": "torch device"},
    "--threads": {"type": int, "help": "torch CPU threads"},
    "--tokens": {"type": int, "default": 4096, "help": "tokens of the rankings that are made here"},
    "--markdown": {"type": Path, "help": "write the table here"},
}


def main() -> None:
    """Run the benchmark."""
    options = arguments(__doc__ or "", _OPTIONS)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    record = Record("peers", options.size)
    with tempfile.TemporaryDirectory(prefix="peers-") as scratch, ProgressView():
        folder = Path(scratch) if options.folder is None else options.folder
        folder.mkdir(parents=True, exist_ok=True)
        _reduce(record, options, folder)
        check(record)
        rows = _rows(record, options, folder)
    text = _table(rows)
    print(text)
    if options.markdown is not None:
        options.markdown.write_text(text)
    record.finish(options.json)


def _reduce(record: Record, options: argparse.Namespace, folder: Path) -> None:
    """Replace options for a quick and a smoke run."""
    if record.size != "full":
        options.protocols = "wikitext2-2048"
        options.windows = record.by_size(0, 2, 1)
        options.tokens = record.by_size(0, 512, 64)
        options.threads = 1
    if record.size == "smoke":
        options.model = str(model_folder(record, folder))
        path = folder / "wiki.test.raw"
        path.write_text("\n".join(f"\n {prose(4)} " for _ in range(12)))
        options.wikitext = str(path)
    elif options.model is None:
        options.model = str(model_folder(record, folder))


def _rows(record: Record, options: argparse.Namespace, folder: Path) -> list[Scored]:
    """Load the model, score all candidates, and add the figures."""
    run = RunOptions(cache=str(folder / "cache"), device=options.device, threads=options.threads)
    section = ModelSection.of({"path": options.model, "dtype": options.dtype})
    loaded = load_for(section, run)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with EvaluationCache(run.cache) as cache:
        name = recognised(loaded.model.config, options.name)
        candidates = _candidates(loaded, cache, name, options.tokens)
        rows: list[Scored] = []
        for protocol in _protocols(options, name):
            data = options.wikitext if protocol.startswith("wikitext2") else options.c4
            rows += score(loaded, cache, candidates, protocol, data, options.windows or None)
    record.notes["model"] = name or "nothing is published of this model"
    record.notes["rows"] = [row.as_notes() for row in rows]
    for row in rows:
        # A candidate that failed has no figure.
        if not math.isfinite(row.perplexity):
            continue
        record.add(row.key, row.perplexity)
        if row.published is not None and row.comparable:
            # Losses, not perplexities, are compared: a perplexity of 10,000 says little.
            record.add(f"{row.key}_difference", math.log(row.perplexity / row.published))
    return rows


def _candidates(
    loaded: LoadedModel, cache: EvaluationCache, name: str | None, tokens: int
) -> list[Fixed]:
    """Return the candidates of a model that is published, or of another one."""
    if name is not None:
        return published_candidates(MODELS[name])
    return own_candidates(loaded, cache, "builtin", tokens)


def _protocols(options: argparse.Namespace, name: str | None) -> list[str]:
    """Return the protocols that are asked for, or those of the papers."""
    if options.protocols is not None:
        return [word.strip() for word in options.protocols.split(",")]
    window = 2048 if name is None else MODELS[name].window
    return [f"wikitext2-{window}", f"c4-{window}"]


def _table(rows: Sequence[Scored]) -> str:
    """Return the table of all candidates."""
    head = ("protocol", "method", "ratio", "parameters left", "perplexity", "published", "")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        published = "" if row.published is None else f"{row.published:.2f}"
        ratio = "" if row.method == DENSE else f"{row.ratio:.1%}"
        error = "" if row.stderr is None else f" ± {row.stderr:.2f}"
        cells = (
            row.protocol, row.method, ratio, f"{row.share_left:.1%}",
            f"{row.perplexity:.2f}{error}", published, row.said,
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
