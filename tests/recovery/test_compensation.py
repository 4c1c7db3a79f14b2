"""Weights that stay make up for blocks that are gone: exactly, where that is possible, and never
for the worse.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from prunesearch.candidate import LayerSubset
from prunesearch.cli.main import cli
from prunesearch.config.model import ModelSection
from prunesearch.config.run_options import RunOptions
from prunesearch.errors import (
    InputError,
    ModelError,
    RunError,
    UnknownNameError,
)
from prunesearch.export import export, recheck
from prunesearch.models.fingerprint import fingerprint
from prunesearch.models.loading import LoadedModel, load
from prunesearch.models.sizes import sizes_of
from prunesearch.models.structure import blocks_of
from prunesearch.models.surgery import pruned
from prunesearch.pipeline.export_request import ExportRequest
from prunesearch.pipeline.run import run_stages
from prunesearch.pipeline.stages.compensate import compensation_report
from prunesearch.pipeline.state import LayersSource, Request
from prunesearch.recovery import gap_fitting
from prunesearch.recovery.compensation import CompensationSettings, compensate, fit_and_held_out
from prunesearch.recovery.gap_fitting import GapFitter
from prunesearch.recovery.gaps import gaps_of
from prunesearch.recovery.least_squares import LeastSquares
from prunesearch.recovery.output_projections import Edit
from tests.support.models import N_LAYERS, byte_tokenizer, resident, tiny

SCATTERED = LayerSubset.of(N_LAYERS, (1, 3, 4))
PRE_NORM = ("llama", "qwen2", "gpt2", "gpt_neox", "falcon", "phi", "opt", "cohere2", "lfm2")


def held(model: PreTrainedModel) -> LoadedModel:
    """A model that was made here, as if loaded."""
    return LoadedModel("tiny", model, byte_tokenizer(), "0" * 64, sizes_of(model), resident(model))


def windows(number: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(1, 257, (number, 32), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def logits(model: PreTrainedModel, candidate: LayerSubset) -> torch.Tensor:
    with pruned(model, candidate):
        found: torch.Tensor = model(input_ids=windows(2, 9), use_cache=False).logits
        return found


@torch.no_grad()
def taught(model: PreTrainedModel, text: torch.Tensor | None = None) -> LoadedModel:
    """A model whose head was fitted to the text, so that what is dropped is missed."""
    text = windows(24, 3) if text is None else text
    hidden = model.model(input_ids=text).last_hidden_state[:, :-1].flatten(0, 1)
    wanted = nn.functional.one_hot(text[:, 1:].flatten(), model.config.vocab_size).float()
    model.lm_head.weight.copy_(8 * torch.linalg.lstsq(hidden, wanted).solution.T)
    return held(model)


def test_gaps_have_a_kept_block_before_them() -> None:
    gaps = gaps_of(LayerSubset.of(10, (0, 2, 4, 5, 9)))
    assert [(gap.before, gap.dropped) for gap in gaps] == [(1, (2,)), (3, (4, 5)), (8, (9,))]


@pytest.mark.parametrize("index", [2, N_LAYERS - 1])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_block_that_is_linear_in_what_the_mlp_before_it_reads_is_made_up_for(
    architecture: str, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(architecture, tie_word_embeddings=False)
    before, dropped = blocks_of(model)[index - 1], blocks_of(model)[index]
    last = before.get_submodule("mlp.c_proj" if architecture == "gpt2" else "mlp.down_proj")
    inner: list[torch.Tensor] = []
    last.register_forward_pre_hook(lambda _, args: inner.append(args[0]))
    change = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)) / 8
    known = lambda hidden, *_, **__: hidden + inner[-1] @ change  # noqa: E731
    monkeypatch.setattr(dropped, "forward", known)
    candidate = LayerSubset.of(N_LAYERS, (index,))
    wanted, without = logits(model, LayerSubset.of(N_LAYERS)), logits(model, candidate)
    monkeypatch.setattr(gap_fitting, "RIDGES", (1e-9,))
    monkeypatch.setattr(GapFitter, "_improves", _always)
    with compensate(held(model), candidate, windows(8), windows(2), "linear") as done:
        found = logits(model, candidate)
    assert done.gaps[0].method == "linear"
    assert (found - wanted).abs().max() < 1e-3 * (without - wanted).abs().max()


def _always(finder: GapFitter, edit: Edit) -> bool:
    finder.edit, finder.metrics = edit, finder._held_out.metrics(edit)
    return True


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", PRE_NORM)
def test_the_folded_scale_is_the_scale_of_the_hidden_state(
    architecture: str, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(architecture, tie_word_embeddings=tied)
    monkeypatch.setattr(GapFitter, "_improves", _always)
    dense = logits(model, LayerSubset.of(N_LAYERS))
    with compensate(held(model), SCATTERED, windows(4), windows(2), "scaling") as done:
        folded = logits(model, SCATTERED)
    alphas = {fitted.gap.before: fitted.alpha for fitted in done.gaps}
    blocks = blocks_of(model)
    with pytest.MonkeyPatch.context() as patch:
        for before, alpha in alphas.items():
            assert alpha is not None
            patch.setattr(blocks[before], "forward", _scaled(blocks[before].forward, alpha))
        scaled = logits(model, SCATTERED)
    assert alphas.keys() == {0, 2} and None not in alphas.values()
    assert torch.allclose(folded, scaled, atol=2e-3 * float(scaled.abs().max()))
    assert torch.equal(logits(model, LayerSubset.of(N_LAYERS)), dense)


def _scaled(forward: Callable[..., Any], alpha: float) -> Callable[..., Any]:
    def scaled(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        out = forward(*args, **kwargs)
        return (out[0] * alpha, *out[1:]) if isinstance(out, tuple) else out * alpha

    return scaled


@pytest.mark.parametrize("sizes", [[40], [1] * 40, [7, 13, 20]])
def test_sums_do_not_depend_on_how_tokens_are_batched(sizes: list[int]) -> None:
    random = torch.Generator().manual_seed(0)
    inputs, state, target = (torch.randn(40, width, generator=random) for width in (6, 4, 4))
    sums = LeastSquares()
    for part in zip(*(tensor.split(sizes) for tensor in (inputs, state, target)), strict=True):
        sums.add(*part)
    weight = 1 / target.double().square().sum(1, keepdim=True)
    gram = inputs.T.double() @ (weight * inputs)
    gram += 0.5 * gram.diagonal().mean() * torch.eye(6)
    expected = torch.linalg.solve(gram, inputs.T.double() @ (weight * (2 * target - state))).float()
    assert torch.allclose(sums.solve(0.5, 2.0), expected, atol=1e-5)
    assert sums.ratio == pytest.approx(
        float((target.norm(dim=1) / state.norm(dim=1)).mean()), rel=1e-5
    )


@pytest.mark.parametrize("method", ["auto", "scaling", "linear"])
def test_the_held_out_loss_never_gets_worse(method: str) -> None:
    loaded = taught(tiny(tie_word_embeddings=False))
    done = compensate(loaded, SCATTERED, windows(24, 3)[:16], windows(24, 3)[16:], method)
    losses = [done.pruned["cross_entropy"], *(gap.loss_after for gap in done.gaps)]
    assert (
        losses == sorted(losses, reverse=True) and losses[-1] == done.compensated["cross_entropy"]
    )
    assert method == "scaling" or done.recovered > 0
    assert {name for gap in done.gaps for name in gap.method.split("+")} <= {
        "none",
        "scaling",
        "linear",
    } - ({"linear", "scaling"} - {method} if method != "auto" else set())


def test_the_report_is_what_the_changed_model_gives() -> None:
    loaded = taught(tiny(tie_word_embeddings=False))
    held_out = windows(24, 3)[16:]
    done = compensate(loaded, SCATTERED, windows(24, 3)[:16], held_out)
    with pruned(loaded.model, SCATTERED), torch.inference_mode():
        found = float(loaded.model(input_ids=held_out, labels=held_out, use_cache=False).loss)
    assert found == pytest.approx(done.compensated["cross_entropy"], rel=1e-4)


def test_weights_keep_their_precision() -> None:
    loaded = held(taught(tiny(tie_word_embeddings=False)).model.bfloat16())
    done = compensate(loaded, SCATTERED, windows(24, 3)[:16], windows(24, 3)[16:])
    assert done.recovered > 0
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}


def test_undo_brings_back_the_very_same_tensors() -> None:
    loaded = taught(tiny(tie_word_embeddings=False))
    before = {
        name: (p.data_ptr(), p.detach().clone()) for name, p in loaded.model.named_parameters()
    }
    done = compensate(loaded, SCATTERED, windows(8, 3), windows(4, 3))
    changed = {
        name for name, p in loaded.model.named_parameters() if p.data_ptr() != before[name][0]
    }
    assert (
        done.helped and changed and all(".1." not in name and ".3." not in name for name in changed)
    )
    done.undo()
    for name, parameter in loaded.model.named_parameters():
        assert parameter.data_ptr() == before[name][0] and torch.equal(parameter, before[name][1])


def test_what_was_found_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = taught(tiny(tie_word_embeddings=False))
    text = (windows(24, 3)[:16], windows(24, 3)[16:])
    with compensate(loaded, SCATTERED, *text, folder=tmp_path) as first:
        weights = [parameter.data.clone() for parameter in first.changed]
    other = compensate(loaded, SCATTERED, *text, "linear", folder=tmp_path)
    other.undo()
    assert not first.cached and not other.cached and len(list(tmp_path.iterdir())) == 2
    with monkeypatch.context() as patch:
        patch.setattr(GapFitter, "find", lambda *_: pytest.fail("found again"))
        with compensate(loaded, SCATTERED, *text, folder=tmp_path) as again:
            assert all(torch.equal(p.data, w) for p, w in zip(again.changed, weights, strict=True))
    assert again.cached
    assert replace(compensation_report(again), cached=False) == compensation_report(first)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    assert not compensate(loaded, SCATTERED, *text, folder=tmp_path).cached


@pytest.mark.parametrize(
    "architecture", ["gemma2", "gemma3_text", "olmo2", "mixtral", "qwen3_next"]
)
def test_types_that_cannot_be_compensated_are_named(architecture: str) -> None:
    with pytest.raises(
        ModelError,
        match=f"models of type '{architecture}' cannot be compensated: .*norms after sublayers",
    ):
        compensate(held(tiny(architecture)), SCATTERED, windows(2), windows(2))


def test_a_model_with_some_blocks_of_experts_is_mapped_where_it_can_be() -> None:
    loaded = held(tiny("qwen3_moe"))  # blocks 1 and 5 have experts
    with pytest.raises(ModelError, match="cannot be compensated by scaling"):
        compensate(loaded, LayerSubset.of(N_LAYERS, (1, 3)), windows(2), windows(2), "scaling")
    with pytest.raises(ModelError, match="cannot be compensated by a linear map"):
        compensate(loaded, LayerSubset.of(N_LAYERS, (2,)), windows(2), windows(2), "linear")
    compensate(loaded, LayerSubset.of(N_LAYERS, (1, 3)), windows(2), windows(2), "linear").undo()


@pytest.mark.parametrize(
    ("candidate", "method", "error", "message"),
    [
        (LayerSubset.of(N_LAYERS, (0,)), "auto", InputError, "leaves no gap after a kept block"),
        (LayerSubset.of(N_LAYERS, (), (2,)), "auto", InputError, "names sublayers"),
        (SCATTERED, "linaer", UnknownNameError, "did you mean 'linear'"),
    ],
)
def test_what_cannot_be_done_is_refused(
    candidate: LayerSubset, method: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        compensate(held(tiny()), candidate, windows(2), windows(2), method)


def test_weights_that_are_not_in_memory_are_refused() -> None:
    loaded = held(tiny())
    blocks_of(loaded.model)[2].to("meta")
    with pytest.raises(InputError, match="leave out `offload` and `device_map`"):
        compensate(loaded, SCATTERED, windows(2), windows(2))


def test_a_shared_weight_is_left_alone() -> None:
    model = tiny()
    blocks = blocks_of(model)
    projections = [blocks[i].get_submodule("mlp.down_proj") for i in (4, 5)]
    projections[0].weight = projections[1].weight
    with pytest.raises(ModelError, match="cannot be compensated by scaling"):
        compensate(held(model), LayerSubset.of(N_LAYERS, (2,)), windows(2), windows(2), "scaling")


def taught_folder(make_model: Callable[..., Path], text: torch.Tensor | None = None) -> Path:
    folder = make_model(tie_word_embeddings=False)
    taught(AutoModelForCausalLM.from_pretrained(folder).eval(), text).model.save_pretrained(folder)
    return folder


def test_an_export_of_compensated_weights_verifies(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    loaded, out = load(str(taught_folder(make_model)), device="cpu"), tmp_path / "out"
    dense = logits(loaded.model, LayerSubset.of(N_LAYERS))
    text = (windows(24, 3)[:16], windows(24, 3)[16:])
    with compensate(loaded, SCATTERED, *text) as done:
        assert done.recovered > 0
        export(loaded, SCATTERED, out, changed=("compensated",))
    assert torch.equal(logits(loaded.model, LayerSubset.of(N_LAYERS)), dense)
    assert recheck(out, None).folder == out
    with compensate(loaded, SCATTERED, *text):
        expected = logits(loaded.model, SCATTERED)
    found = AutoModelForCausalLM.from_pretrained(out).eval()
    assert torch.allclose(logits(found, LayerSubset.of(3)), expected, atol=1e-4)
    assert "compensated" in (out / "README.md").read_text()


def test_nothing_is_written_where_nothing_helps(
    tiny_folder: Path, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GapFitter, "_improves", lambda *_: False)
    request = Request(
        RunOptions(cache=str(tmp_path / "cache")),
        source=LayersSource(ModelSection(path=str(tiny_folder)), "1,3,4"),
        export=ExportRequest(tmp_path / "out"),
        compensation=CompensationSettings("auto", str(prose), 128, 64, None, 64),
    )
    with pytest.raises(RunError, match="does not help on the held-out tokens"):
        run_stages("compensate", request)
    assert not (tmp_path / "out").exists()


def test_held_out_windows_are_others_of_the_same_text(prose: Path) -> None:
    fit, held_out = fit_and_held_out(byte_tokenizer(), str(prose), 1024, 64, None, 256)
    assert fit.shape == (16, 64) and held_out.shape == (4, 64)
    assert not {tuple(row) for row in fit.tolist()} & {tuple(row) for row in held_out.tolist()}
    fit, held_out = fit_and_held_out(byte_tokenizer(), "builtin", 128, 64, str(prose), 64)
    assert fit.shape == (2, 64) and held_out.shape == (1, 64)


def test_the_command_prints_what_was_done(
    make_model: Callable[..., Path], prose: Path, tmp_path: Path
) -> None:
    text = torch.cat(fit_and_held_out(byte_tokenizer(), str(prose), 1024, 64, None, 512))
    folder = taught_folder(make_model, text)
    command = f"compensate {folder} --layers 1,3,4 --out {tmp_path / 'out'} --calibration {prose}"
    short = f"{command} --tokens 1024 --window 64 --held-out-tokens 512 --cache {tmp_path / 'cache'} --device cpu"
    result = CliRunner().invoke(cli, short.split(), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "recovered" in result.output and "verified" in result.output
    again = CliRunner().invoke(cli, short.replace("/out", "/other").split(), catch_exceptions=False)
    assert "found before" in again.output and "verified" in again.output
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_suspended_compensation_gives_the_dense_weights_for_a_while() -> None:
    loaded = held(tiny())
    dense = fingerprint(loaded.model)
    text = windows(4), windows(2, seed=2)
    with compensate(loaded, SCATTERED, *text) as done:
        assert done.helped
        content, changed = loaded.content, fingerprint(loaded.model)
        assert changed != dense
        assert content != loaded.fingerprint
        with done.suspended():
            assert (loaded.content, fingerprint(loaded.model)) == (loaded.fingerprint, dense)
        assert (loaded.content, fingerprint(loaded.model)) == (content, changed)
    assert (loaded.content, fingerprint(loaded.model)) == (loaded.fingerprint, dense)
    with compensate(loaded, SCATTERED, *text):
        assert loaded.content == content, "the same compensation has the same content"
