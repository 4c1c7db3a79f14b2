"""Is what the device computes right? Tiny models, every path, against float64 on the CPU.

Each check gives a relative difference. One over its bound ends the run, since a time of wrong
numbers says nothing.
"""

import copy
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel

from benchmarks.gpu_parts.clock import FAILURES, Meter
from benchmarks.gpu_parts.shapes import loaded_of, moved
from prunesearch.candidate import LayerSubset
from prunesearch.execution.head import Head
from prunesearch.execution.shared_forward import Forward
from prunesearch.models import reordering
from prunesearch.models.layers import StreamedLayers
from prunesearch.models.loading import LoadedModel
from prunesearch.models.structure import blocks_of
from prunesearch.models.surgery import pruned
from prunesearch.models.width_shape import width_shape_of
from prunesearch.objectives.base import ChunkWork, numbers_of
from prunesearch.objectives.calibration import CalibrationObjective, Measure
from prunesearch.objectives.loglikelihood import (
    LogLikelihood,
    Request,
    ScoredBatch,
    inputs_of,
    lay_out_rows,
    lay_out_trees,
    supports_trees,
    tree_depth_fits,
)
from prunesearch.objectives.metrics.hidden_cosine import HiddenCosine
from prunesearch.objectives.metrics.kl import KL
from prunesearch.objectives.metrics.perplexity import Perplexity
from prunesearch.widths.layer_widths import LayerWidths
from tests.support.models import N_LAYERS, tiny
from tests.support.widths import order_for

ARCHITECTURES = ("llama", "qwen3", "gemma2", "mistral", "mixtral", "gpt2", "phi", "olmo2")
CANDIDATES = (
    LayerSubset.of(N_LAYERS),
    LayerSubset.of(N_LAYERS, [0, 3]),
    LayerSubset.of(N_LAYERS, [1]),
    LayerSubset.of(N_LAYERS, [4, 5]),
)
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Largest relative difference from float64. Blocks of tiny random models enlarge rounding."""
WINDOWS_BL = torch.arange(96).reshape(4, 24) * 7919 % 260 + 1
REQUESTS: list[Request] = []
for _context in ((5, 7, 11, 13, 17, 19, 23, 29, 31, 37), (5, 7, 11, 13, 17, 19, 23, 29, 41)):
    for _ending in ((43, 47), (43, 53, 59), (61,), (67, 71, 73, 79)):
        REQUESTS.append((_context, _ending))


@dataclass(frozen=True)
class Values:
    """What a model gives for each candidate, as lists of numbers by name."""

    of: Mapping[str, Sequence[float]]

    def away(self, exact: "Values") -> dict[str, float]:
        """Return the largest difference of each list, relative to its largest value."""
        found = {}
        for name, values in self.of.items():
            ours = torch.tensor(values, dtype=torch.float64)
            theirs = torch.tensor(exact.of[name], dtype=torch.float64)
            away = float((ours - theirs).abs().max() / theirs.abs().max())
            found[name] = away if away == away else float("inf")
        return found


def measure(meter: Meter) -> None:
    """Check every path on every kind of model.

    Raises:
        ArithmeticError: a number is wrong.
    """
    wrong: list[str] = []
    for architecture in meter.record.by_size(ARCHITECTURES, ARCHITECTURES, ("llama",)):
        _guarded(meter, wrong, architecture, partial(_check_kind, meter, wrong, architecture))
    _guarded(meter, wrong, "streamed", lambda: _check_streamed(meter, wrong))
    _guarded(meter, wrong, "narrow", lambda: _check_widths(meter, wrong))
    meter.record.add("checks_failed", len(wrong), "<= 0")
    if wrong:
        raise ArithmeticError("wrong numbers: " + "; ".join(wrong))


def _guarded(meter: Meter, wrong: list[str], name: str, check: Callable[[], None]) -> None:
    """Run a check. One that cannot run is wrong, too."""
    try:
        check()
    except FAILURES as error:
        wrong.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
        meter.record.notes[f"check {name}"] = traceback.format_exc()[-1500:]


def _check_kind(meter: Meter, wrong: list[str], architecture: str) -> None:
    """Check all objectives on a kind of model."""
    base = tiny(architecture)
    double = copy.deepcopy(base).double()
    if hasattr(double.config, "_experts_implementation"):
        # Grouped products of experts take no float64.
        double.config._experts_implementation = "eager"
    exact = exact_values(double)
    for dtype, bound in BOUNDS.items():
        own = loaded_of(moved(copy.deepcopy(base), meter.device, dtype))
        for name, away in scored_values(own).away(exact).items():
            _note(meter, wrong, f"{architecture} {name}", dtype, away, bound)


def _note(
    meter: Meter, wrong: list[str], name: str, dtype: torch.dtype, away: float, bound: float
) -> None:
    """Keep the difference of a check."""
    where = f"check {name}, {str(dtype).removeprefix('torch.')}"
    meter.record.notes[where] = float(f"{away:.3g}")
    if not away <= bound:
        wrong.append(f"{where}: {away:.3g} away")


@torch.inference_mode()
def exact_values(model: PreTrainedModel) -> Values:
    """Return the values by the model's own code in float64, one candidate after the other."""
    dense_BLV = model(input_ids=WINDOWS_BL, use_cache=False).logits.log_softmax(-1)
    dense_BLE = _final_states(model, WINDOWS_BL)
    kl, loss, cosine, answers = [], [], [], []
    for candidate in CANDIDATES:
        with pruned(model, candidate):
            logits_BLV = model(input_ids=WINDOWS_BL, use_cache=False).logits.log_softmax(-1)
            states_BLE = _final_states(model, WINDOWS_BL)
            for context, ending in REQUESTS:
                ids_1L = torch.tensor([[*context, *ending][:-1]])
                log_p_LV = model(input_ids=ids_1L, use_cache=False).logits[0].log_softmax(-1)
                rows_RV = log_p_LV[len(context) - 1 :]
                answers.append(float(rows_RV[range(len(ending)), list(ending)].sum()))
        kl.append(float((dense_BLV.exp() * (dense_BLV - logits_BLV)).sum(-1).mean()))
        predicted_BLV, next_BL = logits_BLV[:, :-1], WINDOWS_BL[:, 1:]
        loss.append(float(-predicted_BLV.gather(2, next_BL[..., None]).mean()))
        cosine.append(float((1 - torch.cosine_similarity(dense_BLE, states_BLE, dim=-1)).mean()))
    return Values(
        {
            "kl": kl,
            "cross-entropy": loss,
            "hidden cosine": cosine,
            "tree answers": answers,
            "row answers": answers,
        }
    )


def _final_states(model: PreTrainedModel, ids_BL: torch.Tensor) -> torch.Tensor:
    """Return the states that the vocabulary head reads."""
    found: list[torch.Tensor] = []

    def note(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        found.append(args[0])

    head = model.get_output_embeddings()
    assert isinstance(head, nn.Module)
    hook = head.register_forward_pre_hook(note)
    model(input_ids=ids_BL, use_cache=False)
    hook.remove()
    return found[0]


def scored_values(loaded: LoadedModel) -> Values:
    """Return the values by our objectives, all candidates together."""
    return Values(
        {
            "kl": metric_of(loaded, KL(), "kl"),
            "cross-entropy": metric_of(loaded, Perplexity(), "cross_entropy"),
            "hidden cosine": metric_of(loaded, HiddenCosine(), "hidden_cosine"),
            "tree answers": _answers(loaded, trees=True),
            "row answers": _answers(loaded, trees=False),
        }
    )


def metric_of(
    loaded: LoadedModel,
    measure: Measure,
    metric: str,
    candidates: Sequence[LayerSubset] = CANDIDATES,
) -> list[float]:
    """Return a metric of each candidate, scored in chunks of two sequences."""
    objective = CalibrationObjective(loaded, WINDOWS_BL, measure, chunk_tokens=48)
    work = [ChunkWork(chunk, candidates) for chunk in objective.chunks]
    found: dict[LayerSubset, list[list[list[float]]]] = {c: [] for c in candidates}
    for result in objective.score(work, Forward(loaded.model, loaded.layers)):
        if result.error is not None:
            raise result.error
        found[result.candidate].append(numbers_of(result.rows))
    return [objective.metrics(found[c]).values[metric] for c in candidates]


def _answers(loaded: LoadedModel, trees: bool) -> list[float]:
    """Return the log-likelihoods of the requests for each candidate."""
    sequences = inputs_of(REQUESTS, 512)
    # Rows are read where trees are not exact.
    head, forward = Head(loaded.model), Forward(loaded.model, loaded.layers)
    exact = supports_trees(loaded.model, forward) and tree_depth_fits(
        loaded.model.config, sequences
    )
    lay_out = lay_out_trees if trees and exact else lay_out_rows
    batches: list[ScoredBatch] = []
    for batch in lay_out(REQUESTS, sequences, 64):
        batches.append(batch.on(loaded.model))
    found: dict[LayerSubset, dict[int, LogLikelihood]] = {c: {} for c in CANDIDATES}
    for job, candidate, state_BLE in forward.run([(b.batch, CANDIDATES) for b in batches]):
        found[candidate].update(batches[job].answers(head, state_BLE))
    values = []
    for candidate in CANDIDATES:
        values += [found[candidate][i][0] for i in range(len(REQUESTS))]
    return values


def _check_streamed(meter: Meter, wrong: list[str]) -> None:
    """Check blocks that are copied from host memory while others compute."""
    for dtype in BOUNDS:
        resident = loaded_of(moved(tiny("llama"), meter.device, dtype))
        expected = metric_of(resident, KL(), "kl")
        layers = streamed_layers(resident, meter.device)
        streamed = loaded_of(resident.model, layers=layers)
        away = Values({"kl": metric_of(streamed, KL(), "kl")}).away(Values({"kl": expected}))
        _note(meter, wrong, "streamed kl", dtype, away["kl"], 1e-6)


def streamed_layers(
    loaded: LoadedModel, device: torch.device, shared: int | None = None
) -> StreamedLayers:
    """Move the blocks of a model to pinned host memory, from which they are streamed.

    Args:
        loaded: the model, whose blocks lose their weights.
        device: device on which they compute.
        shared: number of blocks whose weights are kept; all others use one of these. That saves
            host memory where only time is measured. None: all.
    """
    blocks = blocks_of(loaded.model)
    kept: list[dict[str, torch.Tensor]] = []
    for block in blocks[: shared or len(blocks)]:
        host: dict[str, torch.Tensor] = {}
        for name, parameter in block.named_parameters():
            copied = parameter.data.cpu()
            host[name] = copied.pin_memory() if device.type == "cuda" else copied
        kept.append(host)
    for block in blocks:
        for name, parameter in list(block.named_parameters()):
            owner, _, leaf = name.rpartition(".")
            empty = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
            setattr(block.get_submodule(owner), leaf, empty)
    return StreamedLayers(blocks, [kept[i % len(kept)] for i in range(len(blocks))], device)


def _check_widths(meter: Meter, wrong: list[str]) -> None:
    """Check blocks that lose channels and groups of heads."""
    found: dict[str, list[float]] = {}
    for name, device in (("cpu", torch.device("cpu")), ("device", meter.device)):
        model = tiny("llama")
        order = order_for(model, biases=False)
        moved(model, device)
        reordering.reorder(model, order)
        text = "1:30/2,2:64/1,3:17/1,4,5:50/0"
        narrow = LayerWidths.read(text, width_shape_of(model), order.digest, False)
        found[name] = metric_of(loaded_of(model), KL(), "kl", [LayerSubset.of(N_LAYERS), narrow])
    away = Values({"kl": found["device"]}).away(Values({"kl": found["cpu"]}))
    _note(meter, wrong, "narrow kl", torch.float32, away["kl"], BOUNDS[torch.float32])
