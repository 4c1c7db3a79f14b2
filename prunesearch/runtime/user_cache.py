"""The user's cache folder, for small files that can be made again."""

import os
from pathlib import Path


def user_cache_folder() -> Path:
    """Return this program's folder in the user's cache folder. It may not exist."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "prunesearch"
