"""Files and folders that are complete or absent: what the exports use of `store.files`."""

from prunesearch.store.files import (
    cannot_write,
    new_file,
    place_folder,
    replace_folder,
    scratch_beside,
    sync,
    sync_tree,
)

__all__ = ["cannot_write", "new_file", "place_folder", "replace_folder", "scratch_beside", "sync", "sync_tree"]
