"""Small files in the user's cache folder: what was measured or read on this machine.

They save time and decide no number that is stored. Anybody may delete them. The folder is
``$XDG_CACHE_HOME/prunesearch`` or ``~/.cache/prunesearch``.
"""

import json

from prunesearch.cache.files import replaced_file
from prunesearch.runtime.json_values import Json
from prunesearch.runtime.user_cache import user_cache_folder


def read_kept(name: str) -> Json:
    """Return the value of a file; None if it is missing or damaged.

    Args:
        name: name of the file, without its ending.
    """
    try:
        value: Json = json.loads((user_cache_folder() / f"{name}.json").read_text())
    except (OSError, ValueError):
        return None
    return value


def keep(name: str, value: Json) -> None:
    """Write a value to a file. Without a folder that can be written, nothing is kept.

    Args:
        name: name of the file, without its ending.
        value: value that `read_kept` returns.
    """
    path = user_cache_folder() / f"{name}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced_file(path) as scratch:
            scratch.write_text(json.dumps(value))
    except OSError:
        return
