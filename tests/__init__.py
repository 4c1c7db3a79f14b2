"""The tests.

Whatever the shell that starts them has set, they and the processes they start find the same
settings.
"""

import os
import time

_FOREIGN = (
    "PRUNESEARCH_", "OPTUNA_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "DATASETS_", "TOKENIZERS_", "ACCELERATE_", "LC_"
)  # fmt: skip
_ALONE = (
    "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "LANGUAGE",
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE", "PGPASSFILE",
    "PGSERVICE",
)  # fmt: skip

for _name in list(os.environ):
    if _name.startswith(_FOREIGN) or _name in _ALONE:
        del os.environ[_name]
# Before huggingface_hub is imported, which reads it once: nothing is asked of a hub.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "TERM": "dumb",
    "TZ": "UTC",
}
time.tzset()
