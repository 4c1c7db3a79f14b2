"""How much a target removes."""

from prunesearch.widths.budgets import parse_target


def test_targets_in_words() -> None:
    assert parse_target("20%", 1000, 2) == 200
    assert parse_target("1.5K", 10_000, 2) == 1500
    assert parse_target("100B", 10**12, 2) == 1e11
    assert parse_target("1KiB", 1000, 2) == 512
