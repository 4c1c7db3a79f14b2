"""Reference logits, kept once and checked when they are read;
the likeliest tokens; mixes.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from prunesearch.candidate import LayerSubset
from prunesearch.config.recipe import Recipe
from prunesearch.errors import InputError
from prunesearch.models.loading import LoadedModel
from prunesearch.objectives.calibration import CalibrationObjective
from prunesearch.objectives.calibration_data import token_windows
from prunesearch.objectives.metrics.kl import KL
from prunesearch.objectives.reference_cache import ReferenceCache
from prunesearch.objectives.reference_logits import ReferenceLogits
from prunesearch.objectives.weighted_sum import Part, WeightedSumObjective
from tests.support.models import N_LAYERS, results_of

CANDIDATES = [LayerSubset.of(N_LAYERS, d) for d in ([1], [4, 5])]


@pytest.fixture
def windows(loaded: LoadedModel, prose: Path) -> torch.Tensor:
    return token_windows(str(prose), loaded.tokenizer, 256, 64)


@pytest.mark.parametrize("k", [1, 5, 20, None])
def test_top_k_kl_has_one_tail_bucket(k: int | None) -> None:
    p_RV, q_RV = torch.randn(2, 40, 30, generator=torch.Generator().manual_seed(0)) * 3
    log_p, log_q = p_RV.double().log_softmax(-1), q_RV.double().log_softmax(-1)
    terms = log_p.exp() * (log_p - log_q)
    reference = ReferenceLogits.of([p_RV[:16], p_RV[16:]], k)
    kl = reference.rows(slice(None), torch.device("cpu")).divergence(log_q.float()).double()
    if k is None:
        torch.testing.assert_close(kl, terms.sum(-1), rtol=1e-4, atol=1e-5)
        return
    likely = torch.zeros(p_RV.shape, dtype=torch.bool).scatter(1, p_RV.topk(k).indices, value=True)
    rest_p, rest_q = (x.exp().masked_fill(likely, 0.0).sum(-1) for x in (log_p, log_q))
    expected = terms.masked_fill(~likely, 0.0).sum(-1) + rest_p * (rest_p / rest_q).log()
    torch.testing.assert_close(kl, expected, rtol=1e-3, atol=1e-4)
    assert (kl <= terms.sum(-1) + 1e-4).all(), "a tail bucket only loses"


def test_references_are_kept_in_files_and_damaged_ones_made_again(
    loaded: LoadedModel, windows: torch.Tensor, tmp_path: Path
) -> None:
    def scored() -> list[Any]:
        return results_of(
            loaded,
            CalibrationObjective(loaded, windows, KL(), references=ReferenceCache(tmp_path)),
            *CANDIDATES,
        )

    first = scored()
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    assert scored() == first
    for damaged in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:100], b""):
        file.write_bytes(damaged)
        assert scored() == first
        assert file.read_bytes() == whole


def test_a_mix_is_the_weighted_sum_of_its_parts(loaded: LoadedModel, windows: torch.Tensor) -> None:
    calibration = CalibrationObjective(loaded, windows, KL())
    mix = WeightedSumObjective({"calibration": Part(calibration, {"kl": 2.0, "perplexity": 0.5})})
    (results,) = results_of(loaded, mix, CANDIDATES[1])
    found = mix.metrics(results)
    assert found.values["mix"] == pytest.approx(
        2 * found.values["kl"] + 0.5 * found.values["perplexity"]
    )
    assert found.values["kl"] == calibration.metrics(results).values["kl"]


@pytest.mark.parametrize(
    ("objective", "complaint"),
    [
        ("kl=1,hellaswag=x", "write name=weight"),
        ("kl=0,hellaswag=1", "must be above 0"),
        ("kl=nan,x=1", "above 0"),
    ],
)
def test_mixes_that_cannot_be_read_are_refused(objective: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        Recipe(**{"model": "m", "drop": "2", "objective": objective})
