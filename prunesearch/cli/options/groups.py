"""Options that go together."""

from prunesearch.cli.options.data import (
    BATCH_TOKENS,
    CALIBRATION,
    HELD_OUT,
    HELD_OUT_DATA,
    HELD_OUT_LIMIT,
    HELD_OUT_TOKENS,
    INCLUDE_PATH,
    KL_TOP,
    LIMIT,
    METRIC,
    NUM_FEWSHOT,
    OBJECTIVE,
    SCORE_WEIGHTS,
    TASK,
    TASK_DATA,
    TOKENS,
    WINDOW,
)
from prunesearch.cli.options.execution import (
    COMPILE,
    DEVICE,
    DEVICE_MAP,
    DTYPE,
    ENGINE,
    GPUS_PER_WORKER,
    MODEL_OF_STUDY,
    OFFLOAD,
    RAY_ADDRESS,
    REVISION,
    STATE_MEMORY,
    THREADS,
    TRACK,
    TRACK_TO,
    TRUST,
    WORKERS,
)
from prunesearch.cli.options.places import CACHE, EXPORTED
from prunesearch.cli.options.search import (
    AGAINST,
    ALIGN,
    ASYNCHRONOUS,
    CRITERION,
    DROP,
    ENCODING,
    FIRST_ALLOCATIONS,
    KEEP_PATTERN,
    MAX_LOSS,
    MAX_SIZE,
    ORDER_TOKENS,
    POPULATION,
    PRESELECT,
    PROTECT,
    RACE,
    RANKING,
    SAMPLER,
    SEED,
    SPACE,
    TARGET,
    UNITS_DROPPED,
    WARM_START,
)
from prunesearch.cli.parameters import ignored

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
