"""The benchmark of published removal sets: which models the published numbers belong to."""

import pytest

from benchmarks.peers_parts.scoring import _other_weights


@pytest.mark.parametrize(
    ("perplexity", "comparable"),
    [(5.54, True), (5.60, True), (5.45, True), (5.70, False), (7.1, False), (float("inf"), False)],
)
def test_a_fine_tuned_model_of_the_same_shape_is_not_the_published_one(
    perplexity: float, comparable: bool
) -> None:
    said = _other_weights(perplexity, 5.54)
    assert (said == "") is comparable
    if not comparable:
        assert "5.54 is published" in said
