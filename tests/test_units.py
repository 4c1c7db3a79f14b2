"""Counts with the words that go with them."""

from prunesearch.units import noun_for, plural


def test_a_count_has_its_noun() -> None:
    assert plural(0, "trial") == "0 trials"
    assert plural(1, "trial") == "1 trial"
    assert plural(2000, "study", "studies") == "2,000 studies"


def test_words_fit_their_count() -> None:
    assert noun_for(1, "entry waits", "entries wait") == "entry waits"
    assert noun_for(2, "entry waits", "entries wait") == "entries wait"
    assert noun_for(1.0, "GPU") == "GPU"
    assert noun_for(0.5, "GPU") == "GPUs"
