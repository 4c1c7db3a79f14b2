"""The functions of `cache.files` that exports use.

Files and folders are either complete or absent.
"""

from prunesearch.cache.files import (
    cannot_write,
    foreign_writer,
    new_file,
    place_folder,
    replace_folder,
    scratch_beside,
    sync,
    sync_tree,
)

__all__ = [
    "cannot_write",
    "foreign_writer",
    "new_file",
    "place_folder",
    "replace_folder",
    "scratch_beside",
    "sync",
    "sync_tree",
]
