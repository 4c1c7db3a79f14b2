"""A study over widths is compensated and healed by the same commands as any other."""

from collections.abc import Callable
from pathlib import Path

import pytest

from prunesearch.recovery import finalists
from tests.support.cli import run_json

SEARCH = "--space widths --target 20% --align 8 --trials 8 --sampler random --study w"


@pytest.mark.usefixtures("here")
def test_a_study_over_widths_is_compensated_and_healed(
    make_model: Callable[..., Path], prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finalists, "FIT_TOKENS", 512)
    folder = make_model(tie_word_embeddings=False)
    place = f"--cache {tmp_path / 'cache'} --storage sqlite:///{tmp_path}/study.db --device cpu"
    text = f"--calibration {prose} --tokens 512 --window 64"
    run_json(*f"search {folder} {SEARCH} {text} {place}".split())
    # The narrow layers are compensated, and the second time nothing is computed.
    command = f"compensate w --calibration {prose} --tokens 1024 --window 64 --held-out-tokens 512"
    first = run_json(*f"{command} --out {tmp_path / 'first'} {place}".split())["compensation"]
    again = run_json(*f"{command} --out {tmp_path / 'again'} {place}".split())["compensation"]
    assert (first["cached"], again["cached"]) == (False, True)
    assert first["gaps"] == [] and again["widths"] == first["widths"]
    fitted = [width for width in first["widths"] if width["method"] != "none"]
    assert fitted
    for width in fitted:
        for before, after in filter(None, (width["attention_error"], width["mlp_error"])):
            assert after < before
    assert first["compensated"]["cross_entropy"] < first["pruned"]["cross_entropy"]
    # Finalists are compensated and healed, and the best is exported.
    heal = f"heal w --compensate --finalists 2 --finalist-steps 2 --steps 4 --data {prose}"
    small = (
        f"--eval-every 2 --window 32 --held-out-tokens 128 --batch-size 2 --loss distill {place}"
    )
    healed = run_json(*f"{heal} {small} --out {tmp_path / 'healed'}".split())
    assert [":" in finalist["candidate"] for finalist in healed["finalists"]] == [True, True]
    assert healed["dropped"] == healed["finalists"][0]["candidate"]
    assert healed["healed"]["steps"] == 4 and healed["export"]["verification"]
    assert run_json(*f"{heal} {small} --out {tmp_path / 'healed'}".split())["export"] is None
