"""What is removed, and how it is searched."""

from prunesearch.algorithms.registry import ENCODINGS, REGISTRY, check_encoding
from prunesearch.candidate import check_layers
from prunesearch.cli.help import Words
from prunesearch.cli.parameters import SharedOption, renamed
from prunesearch.config.run_options import RunOptions
from prunesearch.config.search import RANKINGS
from prunesearch.importance.criteria.registry import REGISTRY as CRITERIA
from prunesearch.space import SPACES, UNITS

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
    help="Largest number of tokens of the calibration text that orders the channels.",
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
    help="Take the smallest candidate that loses no more: 2% of the dense quality, or 0.05 "
    "of the metric.",
)
MAX_SIZE = SharedOption("--max-size", help="Take the best candidate that is not larger: 100MiB.")

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
    SharedOption("--llm-calls", type=int, help="Largest number of requests of a study."),
    SharedOption(
        "--llm-tokens", type=int, help="Largest number of tokens of a study, read and written."
    ),
    SharedOption("--llm-cost", type=float, help="Limit of a study's cost; goes with --llm-price."),
    SharedOption("--llm-price", help="Price of a million tokens read and written: 2.5/10."),
    SharedOption(
        "--llm-seconds", type=float, help="Longest time in seconds that a study waits for replies."
    ),
    SharedOption(
        "--llm-timeout",
        type=float,
        show_default="300",
        help="Longest time in seconds of a request.",
    ),
    SharedOption(
        "--llm-retries", type=int, show_default="3", help="Further attempts after a failed request."
    ),
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
        help="Largest number of tokens of a request and its reply.",
    ),
)
