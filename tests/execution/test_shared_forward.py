"""What candidates share is computed once, and nobody can tell from the numbers."""

import pytest
import torch

from prunesearch.candidate import LayerSubset
from prunesearch.errors import ScoringError, VerificationError
from prunesearch.execution.batches import Rows
from prunesearch.execution.cancellation import EvaluationCancelled
from prunesearch.execution.head import Head
from prunesearch.execution.shared_forward import Forward
from prunesearch.export.verification import compare
from prunesearch.models.loading import LoadedModel
from prunesearch.models.surgery import pruned
from tests.support.models import N_LAYERS

IDS = (torch.arange(60) * 7 % 250).view(3, 20)
CANDIDATES = [
    LayerSubset.of(N_LAYERS),
    LayerSubset.of(N_LAYERS, [4]),
    LayerSubset.of(N_LAYERS, [4, 5]),
    LayerSubset.of(N_LAYERS, [0]),
    LayerSubset.of(N_LAYERS, [2], attention=[4], mlp=[1]),
    LayerSubset.of(N_LAYERS, attention=[4]),
]


def states(
    forward: Forward, candidates: list[LayerSubset] = CANDIDATES
) -> dict[LayerSubset, torch.Tensor]:
    return {candidate: state for _, candidate, state in forward.run([(Rows(IDS), candidates)])}


@torch.inference_mode()
def test_shared_states_are_those_of_each_candidate_alone(loaded: LoadedModel) -> None:
    head = Head(loaded.model)
    shared = states(Forward(loaded.model, loaded.layers))
    assert set(shared) == set(CANDIDATES)
    for candidate, state in shared.items():
        with pruned(loaded.model, candidate) as model:
            expected = model(input_ids=IDS, use_cache=False).logits.flatten(0, 1)
        torch.testing.assert_close(
            head.logits(head.apply_final_norm(state.flatten(0, 1))), expected, rtol=1e-4, atol=1e-4
        )
        (alone,) = states(Forward(loaded.model, loaded.layers), [candidate]).values()
        assert torch.equal(alone, state), "to the bit"


def test_a_common_beginning_is_computed_once(loaded: LoadedModel) -> None:
    forward = Forward(loaded.model, loaded.layers)
    states(
        forward, CANDIDATES[:3]
    )  # blocks 0 to 3 once, 4 and 5 of the dense model, 5 of the second
    assert forward.work_counter.computed == 7 * IDS.numel()
    assert forward.work_counter.separate == (6 + 5 + 4) * IDS.numel()
    assert forward.work_counter.saved == pytest.approx(8 / 15)


@pytest.mark.parametrize("held", [1, 2, 100])
def test_little_memory_costs_work_and_no_bit(loaded: LoadedModel, held: int) -> None:
    state_bytes = IDS.numel() * loaded.model.config.hidden_size * 4
    ample = Forward(loaded.model, loaded.layers)
    tight = Forward(loaded.model, loaded.layers, held * state_bytes)
    assert tight.max_candidates(Rows(IDS)) == held
    expected, found = states(ample), states(tight)
    assert all(torch.equal(found[c], expected[c]) for c in CANDIDATES)
    assert (tight.work_counter.computed > ample.work_counter.computed) == (held < len(CANDIDATES))


def test_a_pass_is_left_between_two_blocks(loaded: LoadedModel) -> None:
    forward = Forward(loaded.model, loaded.layers)
    forward.stopped = lambda: forward.work_counter.computed >= 3 * IDS.numel()
    with pytest.raises(EvaluationCancelled):
        states(forward)
    assert forward.work_counter.computed == 3 * IDS.numel()
    assert len(states(Forward(loaded.model, loaded.layers))) == len(CANDIDATES), (
        "the model is whole again"
    )


@pytest.mark.parametrize("place", ["model.layers.1", "model", "lm_head"])
def test_code_of_a_model_that_fails_fails_the_candidate(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """As code that ships with a checkpoint does when it was written for an older transformers."""

    def fail(*_: object, **__: object) -> torch.Tensor:
        raise AttributeError("no attribute seen_tokens")

    monkeypatch.setattr(loaded.model.get_submodule(place), "forward", fail)
    with pytest.raises(ScoringError, match=r"cannot compute: AttributeError: .*seen_tokens"):
        for _, _, state in Forward(loaded.model, loaded.layers).run([(Rows(IDS), CANDIDATES[:1])]):
            head = Head(loaded.model)
            head.logits(head.apply_final_norm(state[0]))
    with pytest.raises(
        VerificationError, match=r"the dense model fails on a prompt, .*seen_tokens"
    ):
        compare(loaded.model, CANDIDATES[1], loaded.model)
