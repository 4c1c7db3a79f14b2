"""How a model is loaded and run, and who follows the run."""

from prunesearch.cli.help import Words
from prunesearch.cli.parameters import WEIGHTS, SharedOption
from prunesearch.config.run_options import COMPILES, ENGINES, OFFLOADS, RunOptions
from prunesearch.tracking.registry import REGISTRY as TRACKERS

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
