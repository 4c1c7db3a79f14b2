"""What candidates are scored on, and held-out data."""

import click

from prunesearch.cli.help import Words
from prunesearch.cli.parameters import SharedOption
from prunesearch.objectives import registry as objectives
from prunesearch.objectives.protocols import PROTOCOLS

# What it is scored on.
OBJECTIVE = SharedOption(
    "--objective",
    help=f"{', '.join(objectives.REGISTRY.names())}, or a mix: kl=1,hellaswag=2; "
    "default kl, or the task.",
)
SCORE_WEIGHTS = SharedOption(
    "--score-weights",
    help="Weights of the sum that ranks trials: quality=1,size=0.2,latency=0; "
    "default quality only.",
)
KL_TOP = SharedOption(
    "--kl-top",
    type=int,
    show_default="all tokens",
    help="KL over the dense model's K likeliest tokens and one tail bucket.",
)
CALIBRATION = SharedOption(
    "--calibration",
    show_default="builtin prose",
    help="Calibration text: text, JSONL, JSON, CSV or Parquet file, "
    "or dataset id[:config[:split]].",
)
TOKENS = SharedOption(
    "--tokens",
    type=click.IntRange(16),
    default=1024,
    show_default=True,
    help="Tokens of calibration text.",
)
WINDOW = SharedOption(
    "--window",
    type=click.IntRange(16),
    default=256,
    show_default=True,
    help="Tokens of a sequence, BOS included.",
)
TASK = SharedOption(
    "--task", help="lm-eval task or group of multiple-choice or log-likelihood type."
)
TASK_DATA = SharedOption(
    "--task-data", help="Local .jsonl[.gz|.bz2] instead of the task's own data."
)
INCLUDE_PATH = SharedOption("--include-path", help="Folder with task YAML files of your own.")
METRIC = SharedOption(
    "--metric", help="Metric of the task; default acc_norm where it has it, else its first."
)
LIMIT = SharedOption("--limit", type=int, help="Documents of the task; default all.")
NUM_FEWSHOT = SharedOption("--num-fewshot", type=int, help="Few-shot examples; default the task's.")
BATCH_TOKENS = SharedOption(
    "--batch-tokens", type=int, help="Tokens per pass of a task; default 2048, on a GPU 16384."
)
PROTOCOL = SharedOption(
    "--protocol",
    type=Words(tuple(PROTOCOLS)),
    help="Measure perplexity as published, instead of --objective.",
)
PROTOCOL_DATA = SharedOption(
    "--protocol-data",
    help="File with the text of --protocol: Parquet, JSON lines, or WikiText's raw file; "
    "default: from the hub.",
)
HELD_OUT = SharedOption(
    "--held-out", help="Held-out text; default: a part of the other text that is kept apart."
)
HELD_OUT_TOKENS = SharedOption(
    "--held-out-tokens", type=click.IntRange(16), help="Tokens of held-out text."
)

HELD_OUT_DATA = SharedOption(
    "--held-out-data",
    help=(
        "Local file with held-out documents of the task; default: those that the search has not "
        "read."
    ),
)
HELD_OUT_LIMIT = SharedOption(
    "--held-out-limit",
    type=click.IntRange(1),
    show_default="1000, or all of --held-out-data",
    help="Held-out documents of the task.",
)
