"""Names of the weight files of a checkpoint, as transformers looks for them. No file of weights is
opened, so this module needs no torch.
"""

import json
from pathlib import Path

from prunesearch.errors import ModelError, one_line
from prunesearch.models.guard import refuse_pointers

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_ORDER = (SINGLE, INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")


def weight_names(folder: Path) -> tuple[str, ...]:
    """Return the file names under which transformers looks for weights. It reads the first one that
    exists.

    Args:
        folder: folder with the config, which may name another file.

    Raises:
        ModelError: the config names something that cannot be a file of the folder.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        named = config.get("transformers_weights")
    except (OSError, ValueError, AttributeError, RecursionError):
        # The reader of the config refuses a config that cannot be read.
        named = None
    if named is None:
        return _ORDER
    return (_inside(named, folder / "config.json"),)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the weight files that transformers reads, in its order. The result is empty if there
    are none.

    This does not check whether the shards that an index names exist.

    Raises:
        ModelError: an index is damaged, or names a file outside the folder.
    """
    for name in weight_names(folder):
        if not (folder / name).is_file():
            # Something of this name that is not a file would confuse other programs.
            if (folder / name).exists():
                raise ModelError(
                    f"{str(folder / name)!r} is a folder and no file of weights: get the model "
                    f"again"
                )
            continue
        if not name.endswith(".index.json"):
            return (folder / name,)
        shards = sorted(set(weight_map_of(folder / name).values()))
        return tuple(folder / shard for shard in shards)
    return ()


def weight_map_of(path: Path) -> dict[str, str]:
    """Read an index of shards.

    Returns:
        The file of each tensor.

    Raises:
        ModelError: the index cannot be read, is damaged, or names a file outside its folder.
    """
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        weight_map = dict(index["weight_map"])
        # transformers does not read an index without it.
        dict(index["metadata"])
    except OSError as error:
        raise ModelError(f"cannot read {str(path)!r}: {error.strerror}; get it again") from None
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        refuse_pointers(path)
        raise ModelError(f"{str(path)!r} is damaged: {one_line(error)}; get it again") from None
    return {name: _inside(file, path) for name, file in weight_map.items()}


def _inside(name: object, said_by: Path) -> str:
    """Return a file name that must lie in the folder of the file that names it.

    Args:
        name: name of the file, a JSON value.
        said_by: file that names it.

    Raises:
        ModelError: the name is not a file name, or it may lie outside the folder.
    """
    if isinstance(name, str) and name and "\0" not in name:
        inside = not Path(name).is_absolute() and ".." not in Path(name).parts
        if inside:
            return name
    raise ModelError(
        f"{str(said_by)!r} names the weight file {name!r}, which is not a file of its folder: get "
        f"the model again"
    )
