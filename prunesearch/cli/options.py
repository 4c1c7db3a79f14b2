"""The options of the commands. Each is defined once, and means the same on every command.

A command may change the default of an option, or require it (see `SharedOption.variant`).
"""

import click

from prunesearch.algorithms.registry import ENCODINGS, REGISTRY, check_encoding
from prunesearch.candidate import check_layers
from prunesearch.cli.help import Words
from prunesearch.cli.parameters import WEIGHTS, SharedOption, ignored, renamed
from prunesearch.config.run_options import COMPILES, ENGINES, OFFLOADS, RunOptions
from prunesearch.config.search import RANKINGS
from prunesearch.export.formats.registry import checkpoint_formats
from prunesearch.importance.criteria.registry import REGISTRY as CRITERIA
from prunesearch.objectives import registry as objectives
from prunesearch.objectives.protocols import PROTOCOLS
from prunesearch.runtime.masking import CACHE_VARIABLE, STORAGE_VARIABLE
from prunesearch.service.credentials import DEFAULT_SERVER, SERVER_VARIABLE, TOKEN_VARIABLE
from prunesearch.space import SPACES, UNITS
from prunesearch.tracking.registry import REGISTRY as TRACKERS

# What is removed.
DROP = SharedOption(
    "--drop",
    help="How many layers to drop: 8, 25%, ..8 (up to), pareto[:25%]; search: or several, 4,8.",
)
LAYERS = SharedOption(
    "--layers",
    earlier=[renamed("--drop", "--layers", "layers", check_layers)],
    help="Which layers of MODEL to drop: 3,7,12-14; 7a is the attention of layer 7, 7m its MLP. "
    "For export also widths, layer:channels/KV groups: 3:1024/2,7.",
)
PROTECT = SharedOption("--protect", default="", help="Blocks that stay: first:1,last:1 or 0,5-8.")
SPACE = SharedOption(
    "--space",
    type=Words(SPACES),
    show_default="blocks",
    help="What is searched: layers to drop, widths of layers, or blocks to drop and widths.",
)
UNITS_DROPPED = SharedOption(
    "--units", type=Words(UNITS), show_default="blocks", help="The same as --space."
)
TARGET = SharedOption(
    "--target", help="What widths remove in all: 20%, 26M parameters, 100MiB; or several, 20%,40%."
)
CRITERION = SharedOption(
    "--criterion",
    type=Words(CRITERIA.names),
    show_default="flap",
    help="Importance that orders the channels: the first ones stay.",
)
ORDER_TOKENS = SharedOption(
    "--order-tokens",
    type=int,
    show_default="8192",
    help="Most tokens of the calibration text that the channels are ordered on.",
)
ALIGN = SharedOption(
    "--align", type=int, show_default="64", help="Widths are multiples of this many channels."
)
FIRST_ALLOCATIONS = SharedOption(
    "--first-allocations/--no-first-allocations",
    default=None,
    help="Widths: begin with the fixed allocations.  [default: first-allocations]",
)
KEEP_PATTERN = SharedOption(
    "--keep-pattern",
    is_flag=True,
    help="Drop whole periods of unlike blocks, as llama.cpp needs it.",
)
AGAINST = SharedOption(
    "--against",
    type=Words(("size", "latency")),
    help="What --drop pareto weighs quality against; default size.",
)
MAX_LOSS = SharedOption(
    "--max-loss",
    help="The smallest that loses no more: 2% of the dense quality, or 0.05 of the metric.",
)
MAX_SIZE = SharedOption("--max-size", help="The best that is not larger: 100MiB.")

# How it is searched.
SAMPLER = SharedOption(
    "--sampler",
    type=Words(REGISTRY.names),
    default="pso",
    show_default=True,
    help="One, or several: pso,woa.",
)
ENCODING = SharedOption(
    "--encoding",
    earlier=[renamed("--form", "--encoding", "encoding", check_encoding)],
    type=Words(ENCODINGS),
    help="Encoding that a swarm moves; default set.",
)
PRESELECT = SharedOption(
    "--preselect/--no-preselect",
    default=True,
    help="A surrogate chooses among the swarm's moves.",
)
RANKING = SharedOption(
    "--ranking", type=Words(RANKINGS), help="What to start from; default by sampler."
)
WARM_START = SharedOption(
    "--warm-start",
    metavar="STUDY",
    help="Start from what another study of the same model has found.",
)
WARM_START_STORAGE = SharedOption(
    "--warm-start-storage",
    metavar="URL",
    show_default="--storage",
    help="Optuna RDB URL of the study of --warm-start.",
)
ASYNCHRONOUS = SharedOption(
    "--asynchronous", is_flag=True, help="Swarms: never wait for a generation."
)
POPULATION = SharedOption(
    "--population", type=int, help="Trials per generation; default by sampler."
)
SEED = SharedOption("--seed", type=int, help="Seed of the random generator.  [default: 0]")
RACE = SharedOption(
    "--race",
    is_flag=True,
    help="Stop scoring a candidate once it is surely worse than the best.",
)
TRIALS = SharedOption(
    "--trials",
    type=int,
    show_default=f"{RunOptions().trials}, or what the sampler needs",
    help="Trials of a study in all.",
)

CONFIRM = SharedOption(
    "--confirm",
    type=float,
    metavar="SHARE",
    show_default="0.2 for a task, 0 for calibration text",
    help="Share of the scored documents that confirms the best trials.",
)

# The language model of the sampler llm. Its key comes from the environment, because other users of
# the machine can read command lines.
LLM_OPTIONS = (
    SharedOption("--llm-url", help="Base URL of an endpoint: https://HOST/v1."),
    SharedOption(
        "--llm-model",
        help="Model at --llm-url (key in PRUNESEARCH_LLM_KEY); or a .gguf file, or a folder.",
    ),
    SharedOption("--llm-calls", type=int, help="Most requests of a study."),
    SharedOption("--llm-tokens", type=int, help="Most tokens of a study, read and written."),
    SharedOption("--llm-cost", type=float, help="Most money of a study; goes with --llm-price."),
    SharedOption("--llm-price", help="Price of a million tokens read and written: 2.5/10."),
    SharedOption("--llm-seconds", type=float, help="Most seconds that a study waits for replies."),
    SharedOption(
        "--llm-timeout", type=float, show_default="300", help="Most seconds of a request."
    ),
    SharedOption("--llm-retries", type=int, show_default="3", help="More attempts of a request."),
    SharedOption(
        "--llm-required",
        is_flag=True,
        help="Stop if the model fails, instead of going on with mutations.",
    ),
    SharedOption(
        "--llm-temperature",
        type=float,
        show_default="0.7",
        help="Temperature; it rises while the search stagnates.",
    ),
    SharedOption("--llm-candidates", type=int, show_default="4", help="Candidates in a reply."),
    SharedOption(
        "--llm-attempts",
        type=int,
        show_default="3",
        help="Replies without a new candidate after which mutations take over.",
    ),
    SharedOption(
        "--llm-reflection", type=int, help="Let the model write lessons every N generations."
    ),
    SharedOption(
        "--llm-history", type=int, show_default="14", help="Scored candidates in a request."
    ),
    SharedOption(
        "--llm-max-repair",
        type=float,
        show_default="0.75",
        help="Largest share of a candidate that is changed to meet the budget.",
    ),
    SharedOption(
        "--llm-context",
        type=int,
        show_default="8192",
        help="Most tokens of a request and its reply.",
    ),
)

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
    help="Local file with held-out documents of the task; default: those after the search's.",
)
HELD_OUT_LIMIT = SharedOption(
    "--held-out-limit",
    type=click.IntRange(1),
    show_default="1000, or all of --held-out-data",
    help="Held-out documents of the task.",
)

# The model.
MODEL_OF_STUDY = SharedOption(
    "--model", help="Where STUDY's model is now; its content must be what was searched."
)
REVISION = SharedOption("--revision", help="Branch, tag or commit of a Hugging Face id.")
DTYPE = SharedOption(
    "--dtype",
    type=Words(("auto", "bfloat16", "float16", "float32")),
    default="auto",
    show_default=True,
    help="Number type of weights and arithmetic.",
)
TRUST = SharedOption(
    "--trust-remote-code", is_flag=True, help="Run modelling code that ships with the model."
)

# The machine.
DEVICE = SharedOption("--device", help="Torch device; default cuda where there is one, else cpu.")
DEVICE_MAP = SharedOption("--device-map", help="Passed to accelerate, e.g. auto.")
THREADS = SharedOption("--threads", type=int, help="Torch CPU threads.")
OFFLOAD = SharedOption(
    "--offload",
    earlier=[WEIGHTS],
    type=Words(OFFLOADS),
    show_default="none",
    help="Where weights wait: none: on the device; cpu: in host memory; disk: layer by layer.",
)
STATE_MEMORY = SharedOption(
    "--state-memory",
    default=RunOptions().state_memory,
    show_default=True,
    help="Memory for hidden states. auto: by what a GPU has free; 2GiB on a CPU.",
)
COMPILE = SharedOption(
    "--compile",
    type=Words(COMPILES),
    default=RunOptions().compile,
    show_default=True,
    help="Compile a block and reuse it: auto: if it pays within the search; off: plain code.",
)
WORKERS = SharedOption(
    "--workers",
    type=int,
    default=1,
    show_default=True,
    help="Workers at once, each with a model.",
)
ENGINE = SharedOption(
    "--engine",
    type=Words(ENGINES),
    default="local",
    show_default=True,
    help="Where workers run: local: processes on this machine; ray: where Ray places them.",
)
RAY_ADDRESS = SharedOption(
    "--ray-address",
    help="Ray cluster to join: auto, or HOST:PORT; default: Ray is started on this machine.",
)
GPUS_PER_WORKER = SharedOption(
    "--gpus-per-worker",
    type=float,
    help="GPUs of a Ray worker: 0.5, 1, or several for a large model; default 1 on a GPU.",
)

# Experiment trackers. Their keys come from the environment.
TRACK = SharedOption(
    "--track",
    type=Words(TRACKERS.names),
    help="Experiment trackers that follow the run: one, or several: mlflow,tensorboard.",
)
TRACK_TO = SharedOption(
    "--track-to",
    show_default="storage/tracking/NAME",
    help="Where they write: a folder, a URI, or mlflow=http://HOST:5000,tensorboard=DIR.",
)

# Where results are. A password belongs into ~/.pgpass or into the variable: other users of the
# machine can read command lines.
STUDY = SharedOption("--study", help="Name of the study.", show_default="made from the recipe")
STORAGE = SharedOption(
    "--storage",
    default=RunOptions().storage,
    show_default=True,
    envvar=STORAGE_VARIABLE,
    show_envvar=True,
    help="Optuna RDB URL of the studies. Keep its password in ~/.pgpass.",
)
COPY_FROM = SharedOption(
    "--from",
    "source",
    default=RunOptions().storage,
    show_default=True,
    envvar=STORAGE_VARIABLE,
    show_envvar=True,
    help="Optuna RDB URL of the database with the studies.",
)
COPY_TO = SharedOption(
    "--to",
    "target",
    required=True,
    help="Optuna RDB URL of the database for the copies. Keep its password in ~/.pgpass.",
)
CACHE = SharedOption(
    "--cache",
    default=RunOptions().cache,
    show_default=True,
    envvar=CACHE_VARIABLE,
    show_envvar=True,
    help="The cache: DIR, URL or DIR,URL. Keep a password in ~/.pgpass.",
)

# The server.
SERVER = SharedOption(
    "--server",
    default=DEFAULT_SERVER,
    show_default=True,
    envvar=SERVER_VARIABLE,
    show_envvar=True,
    help="URL of the server.",
)
TOKEN_FILE = SharedOption(
    "--token-file",
    show_default=f"{TOKEN_VARIABLE}, ~/.config/prunesearch/token, storage/admin.token",
    help="File with the token, which others may not read.",
)
INSECURE_HTTP = SharedOption(
    "--insecure-http",
    is_flag=True,
    help="Send the token to another machine without encryption.",
)

# The checkpoint that is written.
OUT = SharedOption(
    "--out",
    help="New or empty folder for what is written; with --gguf of export a new file, and for "
    "report also an earlier report.",
)
EXPORT_FORMAT = SharedOption(
    "--as",
    "export_format",
    type=Words(checkpoint_formats),
    show_default="plain; widths for narrow layers",
    help="Format of the checkpoint. Dropped sublayers need another format than plain.",
)
MAX_SHARD = SharedOption(
    "--max-shard", default="5GB", show_default=True, help="Size of the largest weight file."
)
JOINT = SharedOption("--joint", is_flag=True, help="Put studies of different models side by side.")
SCORE = SharedOption(
    "--score",
    is_flag=True,
    help="First load the model, and measure on held-out data what the report lacks.",
)
EXPORTED = SharedOption(
    "--exported",
    multiple=True,
    metavar="DIR",
    help="Checkpoint of a study to measure too; those of this machine are known.",
)
JSON = SharedOption("--json", "as_json", is_flag=True, help="One JSON document on stdout.")

# Options that go together.
RECIPE_OPTIONS = (
    DROP,
    SPACE,
    TARGET,
    CRITERION,
    ORDER_TOKENS,
    ALIGN,
    FIRST_ALLOCATIONS,
    PROTECT,
    UNITS_DROPPED,
    KEEP_PATTERN,
    AGAINST,
    SAMPLER,
    ENCODING,
    PRESELECT,
    RANKING,
    WARM_START,
    ASYNCHRONOUS,
    POPULATION,
    SEED,
    RACE,
    SCORE_WEIGHTS,
)
DATA_OPTIONS = (
    OBJECTIVE,
    KL_TOP,
    CALIBRATION,
    TOKENS,
    WINDOW,
    TASK,
    TASK_DATA,
    INCLUDE_PATH,
    METRIC,
    LIMIT,
    NUM_FEWSHOT,
    BATCH_TOKENS,
)
SELECTION_OPTIONS = (MAX_LOSS, MAX_SIZE)
MODEL_OPTIONS = (REVISION, DTYPE, TRUST)
LOADING_OPTIONS = (DEVICE, DEVICE_MAP, THREADS, OFFLOAD)
RAY_OPTIONS = (ENGINE, RAY_ADDRESS, GPUS_PER_WORKER)
"""Where the workers are."""
TRACKING = (TRACK, TRACK_TO)
RUN_OPTIONS = (*LOADING_OPTIONS, STATE_MEMORY, COMPILE, WORKERS, *RAY_OPTIONS, CACHE)
"""How candidates are scored: on one model, or by several processes."""
WITHOUT_SCORING = (*LOADING_OPTIONS, CACHE, ignored("--workers", "--state-memory", "--compile"))
"""How a model is loaded by a command that scores no candidates of a search."""
SCORE_OPTIONS = (
    MODEL_OF_STUDY,
    CALIBRATION.variant(show_default="where it was"),
    TASK_DATA,
    INCLUDE_PATH,
    HELD_OUT,
    HELD_OUT_TOKENS.variant(show_default="4096"),
    HELD_OUT_DATA,
    HELD_OUT_LIMIT,
    EXPORTED,
    TRUST,
    *LOADING_OPTIONS,
    STATE_MEMORY,
)
"""What is measured by a report, and how."""
ONE_CANDIDATE = (*LOADING_OPTIONS, STATE_MEMORY, COMPILE, CACHE, ignored("--workers"))
"""How one candidate is scored."""
