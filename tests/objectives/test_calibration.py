"""What objectives on calibration text share: their items, and the dense model's outputs."""

from pathlib import Path

import pytest
import torch

from prunesearch.candidate import LayerSubset
from prunesearch.errors import DataError
from prunesearch.export import export
from prunesearch.models.loading import LoadedModel, load
from prunesearch.objectives.calibration import CalibrationObjective
from prunesearch.objectives.metrics.kl import KL
from prunesearch.objectives.reference_cache import ReferenceCache
from tests.support.models import N_LAYERS, results_of

WINDOWS_BL = torch.arange(96).view(6, 16) % 90


def test_a_checkpoint_is_compared_with_the_outputs_of_its_dense_model(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    candidate = LayerSubset.of(N_LAYERS, (1, 4))
    references = ReferenceCache(tmp_path / "references")
    dense = CalibrationObjective(loaded, WINDOWS_BL, KL(None), references, chunk_tokens=32)
    assert len(dense.missing_outputs()) == 3
    (expected,) = results_of(loaded, dense, candidate)
    assert dense.missing_outputs() == []
    export(loaded, candidate, tmp_path / "out")
    checkpoint = load(str(tmp_path / "out"), device="cpu")
    compared = CalibrationObjective(
        checkpoint, WINDOWS_BL, KL(None), references, 32, compared_with=dense.outputs
    )
    (found,) = results_of(checkpoint, compared, LayerSubset.of(N_LAYERS - 2))
    assert compared.metrics(found).values == pytest.approx(dense.metrics(expected).values)
    # The same numbers of the checkpoint beside itself have other keys.
    alone = CalibrationObjective(checkpoint, WINDOWS_BL, KL(None), references, 32)
    assert alone.chunks[0].identity != compared.chunks[0].identity
    assert alone.digest == compared.digest


def test_outputs_that_are_not_stored_or_of_other_text_are_refused(loaded: LoadedModel) -> None:
    dense = CalibrationObjective(loaded, WINDOWS_BL, KL(None))
    with pytest.raises(DataError, match="are not stored"):
        CalibrationObjective(loaded, WINDOWS_BL, KL(None), compared_with=dense.outputs)
    with pytest.raises(DataError, match="other tokens"):
        CalibrationObjective(loaded, WINDOWS_BL + 1, KL(None), compared_with=dense.outputs)


def test_items_are_the_sequences(loaded: LoadedModel) -> None:
    whole = CalibrationObjective(loaded, WINDOWS_BL, KL(None), chunk_tokens=32)
    part = CalibrationObjective(loaded, WINDOWS_BL[3:5], KL(None))
    assert len(whole.items()) == 6
    assert part.items() < whole.items()
