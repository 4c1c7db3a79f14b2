"""The content of weights follows from the fingerprint and the registered changes."""

from prunesearch.models.weights_state import WeightsState


def test_unchanged_weights_have_the_fingerprint_as_their_content() -> None:
    state = WeightsState()
    assert state.dense
    assert state.content("f" * 64) == "f" * 64


def test_a_change_gives_other_content_and_undoing_it_restores_the_content() -> None:
    state = WeightsState()
    state.add("compensated")
    compensated = state.content("f")
    assert not state.dense
    assert compensated not in ("f", state.content("e"))
    state.add("healed")
    assert state.content("f") not in ("f", compensated)
    state.remove("healed")
    assert state.content("f") == compensated
    state.remove("compensated")
    assert state.dense


def test_changes_of_a_block_are_forgotten_at_its_end() -> None:
    state = WeightsState(("compensated",))
    with state.restored():
        state.add("healed")
    assert state.changes == ("compensated",)
