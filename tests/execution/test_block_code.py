"""Compiled blocks give what plain ones give, and whatever fails runs by the model's own code."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch

from prunesearch.candidate import LayerSubset
from prunesearch.events import Event, Message, subscribed
from prunesearch.execution import block_code
from prunesearch.execution.batches import Batch, Rows
from prunesearch.execution.block_code import BlockCode
from prunesearch.execution.shared_forward import Forward
from prunesearch.execution.tree_packing import tree_batches
from prunesearch.models.loading import LoadedModel
from tests.support.models import N_LAYERS

ROWS = Rows(torch.arange(60).view(3, 20) * 7 % 250)
SHORT = Rows(torch.arange(14).view(2, 7) * 11 % 250)
(TREE,) = tree_batches([(*range(1, 13), *ending) for ending in ((20, 21), (30,), (40, 41))], 64)
CANDIDATES = [
    LayerSubset.of(N_LAYERS),
    LayerSubset.of(N_LAYERS, [2]),
    LayerSubset.of(N_LAYERS, [2], attention=[4], mlp=[1]),
]


def states(
    loaded: LoadedModel, code: BlockCode, batches: Sequence[Batch] = (ROWS, SHORT, TREE, ROWS)
) -> list[torch.Tensor]:
    forward = Forward(loaded.model, loaded.layers, code=code)
    jobs = [(batch, CANDIDATES) for batch in batches]
    return [state for _, _, state in forward.run(jobs)]


def test_code_is_made_once_for_all_blocks_candidates_and_lengths(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[object] = []

    def counted(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return graph.forward

    compiler = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, **settings: compiler(f, backend=counted, **settings)
    )
    code = BlockCode("on")
    for found, own in zip(states(loaded, code), states(loaded, BlockCode()), strict=True):
        torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-4)
    assert code.compiled
    assert code.name == "compiled"
    assert len(graphs) <= 2, "one for rows and one for trees"


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_blocks_agree_with_plain_ones(loaded: LoadedModel) -> None:
    code = BlockCode("on")
    for found, own in zip(
        states(loaded, code, [ROWS]), states(loaded, BlockCode(), [ROWS]), strict=True
    ):
        torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-4)
    assert code.compiled
    assert code.seconds > 0
    assert code.speedup > 0


def test_without_a_compiler_blocks_run_by_their_own_code_with_one_note(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(function: object, **settings: object) -> Callable[..., object]:
        def fail(*args: object) -> object:
            raise RuntimeError("no compiler found")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    code, told = BlockCode("on"), list[Event]()
    with subscribed(told.append):
        found = states(loaded, code)
    for ours, own in zip(found, states(loaded, BlockCode()), strict=True):
        assert torch.equal(ours, own)
    began, note = told
    assert isinstance(began, Message) and isinstance(note, Message)
    assert began.text == "compiling a block (about 15 s)"
    assert "no compiler found" in note.text
    assert code.name == "fast attention"


@pytest.mark.parametrize(
    ("planned", "seconds", "tried"), [(None, 0.0, False), (1.0, 1e9, False), (1e12, 1e-9, True)]
)
def test_auto_compiles_only_if_it_pays(
    planned: float | None,
    seconds: float,
    tried: bool,
    loaded: LoadedModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[bool] = []
    monkeypatch.setattr(block_code, "COMPILE_SECONDS", {"cpu": seconds})
    monkeypatch.setattr(block_code, "widens", lambda: False)
    monkeypatch.setattr(BlockCode, "_start", lambda self, *args: started.append(True))
    states(loaded, BlockCode("auto", planned))
    assert bool(started) == tried


def test_only_on_uses_attention_that_rounds_more(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without being asked for, nothing moves the numbers further than the order of a sum."""
    used: list[str] = []

    @contextmanager
    def noted() -> Iterator[None]:
        used.append("fast attention")
        yield

    monkeypatch.setattr(block_code, "fast_attention", noted)
    states(loaded, BlockCode("auto"))
    assert used == []
    assert BlockCode("auto").name == "own"
