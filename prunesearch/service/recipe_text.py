"""Reads a recipe that a user sent as text."""

import yaml

from prunesearch.errors import InputError
from prunesearch.runtime.json_values import JsonObject, to_json
from prunesearch.service.allowed import MOST_BYTES

_DEEPEST = 20  # levels of nesting; a recipe has four
_MOST_BITS = 64  # of a whole number; a larger one may have too many digits to be shown


class _Loader(yaml.SafeLoader):
    """Reads YAML without references to earlier parts.

    A short text with references to references can stand for a document of any size.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Read a node, and refuse a reference."""
        if self.check_event(yaml.AliasEvent):
            raise InputError("a recipe has no references (*name): write the value itself")
        return super().compose_node(parent, index)


def read_recipe(text: str) -> JsonObject:
    """Return the document of a recipe.

    Args:
        text: contents of a YAML file.

    Raises:
        InputError: the text is not YAML, or is not a mapping with names as keys.
    """
    # Reading a megabyte of YAML takes seconds.
    if len(text) > MOST_BYTES:
        raise InputError(f"the recipe is larger than {MOST_BYTES} bytes: a recipe is a short text")
    if max(text.count("["), text.count("{")) > 1000:
        raise InputError("the recipe is nested too deeply")
    try:
        document = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise InputError(f"the recipe is not YAML: {problem[:200]}") from None
    except InputError:
        raise
    except (RecursionError, ValueError, OverflowError) as error:
        raise InputError(f"the recipe cannot be read: {type(error).__name__}") from None
    if not isinstance(document, dict):
        raise InputError("the recipe is not a mapping: write model: NAME, and search: …")
    check_depth(document)
    converted = to_json(document)
    assert isinstance(converted, dict)
    return converted


def check_depth(value: object, level: int = 0) -> None:
    """Refuse a document that is nested too deeply, or has other keys than names, or huge numbers.

    Raises:
        InputError: it is one of these.
    """
    if level > _DEEPEST:
        raise InputError("the recipe is nested too deeply")
    if isinstance(value, dict):
        for key, part in value.items():
            if not isinstance(key, str):
                raise InputError(f"unknown key {key!r} of the recipe: keys are names")
            check_depth(part, level + 1)
    elif isinstance(value, list):
        for part in value:
            check_depth(part, level + 1)
    elif isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise InputError(f"the recipe has a number of more than {_MOST_BITS} bits")
