"""A replaced attribute comes back as it was."""

import pytest
from torch import nn

from prunesearch.runtime.patching import replaced


def test_a_method_of_the_class_leaves_nothing_on_the_object() -> None:
    module = nn.Linear(2, 2)
    with replaced(module, "forward", lambda x: "replaced"):
        assert module(None) == "replaced"
    assert "forward" not in vars(module)


def test_an_attribute_of_the_object_is_restored_after_an_error() -> None:
    module = nn.Linear(2, 2)
    own = lambda x: "own"  # noqa: E731
    vars(module)["forward"] = own
    with pytest.raises(ValueError, match="inside"), replaced(module, "forward", None):
        raise ValueError("inside")
    assert vars(module)["forward"] is own


def test_what_is_not_there_cannot_be_replaced() -> None:
    with pytest.raises(AttributeError), replaced(nn.Linear(2, 2), "nosuch", None):
        pass
