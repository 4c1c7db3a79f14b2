"""Is a narrower model exactly what was scored, does scoring copy weights, and is the budget met?

* Three forms of the same candidate are compared in float32: views of prefixes (as candidates are
  scored), new smaller layers (as they are exported), and the dense model in which the inputs of the
  removed columns are replaced by their means.
* Candidates are scored one after the other in a process of its own, whose memory is watched.
* Every sampler proposes candidates for a formula, and the weights that each one removes are counted.
"""

import multiprocessing
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import optuna
import torch
from optuna.trial import TrialState
from torch import nn

from benchmarks.rates_parts import exported
from benchmarks.rates_parts.campaign import Campaign
from benchmarks.rates_parts.endpoint import LAYERS, fuzz_space
from benchmarks.support.record import Record
from prunesearch.algorithms.registry import REGISTRY, AlgorithmEntry
from prunesearch.importance.orders import channel_order
from prunesearch.models.channel_order import ChannelOrder
from prunesearch.models.loading import LoadedModel, load
from prunesearch.models.narrowing import narrow
from prunesearch.models.reordering import order_of, reorder
from prunesearch.models.structure import blocks_of
from prunesearch.models.surgery import pruned
from prunesearch.models.width_shape import attention_of, mlp_of, width_shape_of
from prunesearch.objectives.calibration_data import token_windows
from prunesearch.pipeline.session import open_session
from prunesearch.samplers import build, report
from prunesearch.widths.layer_widths import LayerWidths
from prunesearch.widths.space import WidthSpace

_MEMORY_CANDIDATES = 50
_MIB = 2**20
_CHANNELS = max(fuzz_space().shape.channels)
_WEIGHTS = np.random.default_rng(0).random(LAYERS)


def random_candidates(space: WidthSpace, count: int, seed: int = 0) -> list[LayerWidths]:
    """Return random candidates of a space."""
    rng = np.random.default_rng(seed)
    everything_G = np.array([gene.everything for gene in space.genes])
    levels_MG = space.project(rng.random((count, space.n_genes)) * everything_G, rng)
    assert levels_MG is not None
    return [space.candidate(levels_G) for levels_G in levels_MG]


def measure(record: Record, campaign: Campaign) -> None:
    """Add the figures of exactness, memory and budgets."""
    _masking(record, campaign)
    _memory(record, campaign)
    _budgets(record)
    with tempfile.TemporaryDirectory(dir=campaign.folder) as scratch:
        exported.measure(record, campaign, Path(scratch))


# Real removal against masking.


def _masking(record: Record, campaign: Campaign) -> None:
    """Compare the three forms of candidates.

    In float32 the order of summation changes the last digits of a logit, so the difference is
    given as a share of the largest logit too. In float64 the forms must agree as they are; biases
    are left out there, because they are computed in float32.
    """
    count = record.by_size(6, 3, 2)
    for name, bits in (("float32", torch.float32), ("float64", torch.float64)):
        views, removed, largest = 0.0, 0.0, 0.0
        for ratio in campaign.ratios:
            found = _compared(campaign, ratio, bits, count if bits == torch.float32 else 1)
            views, removed = max(views, found.views), max(removed, found.removed)
            largest = max(largest, found.largest_logit)
        for form, difference in (("views", views), ("removed", removed)):
            record.add(
                f"exact_{name}_{form}_share_of_largest_logit", difference / largest, "<= 1e-5"
            )
            bound = "<= 1e-5" if bits == torch.float64 else None
            record.add(f"exact_{name}_{form}_largest_difference", difference, bound)


@dataclass(frozen=True)
class _Compared:
    """Largest differences of logits from those of the masked dense model.

    Attributes:
        views: of blocks that use views of prefixes.
        removed: of blocks with new smaller layers.
        largest_logit: largest absolute logit of the masked model.
    """

    views: float
    removed: float
    largest_logit: float


def _compared(campaign: Campaign, ratio: str, bits: torch.dtype, count: int) -> _Compared:
    """Compare the three forms of random candidates of one ratio."""
    loaded = load(campaign.model, dtype="float32", device="cpu")
    windows_BL = token_windows(
        str(campaign.calibration), loaded.tokenizer, campaign.tokens, campaign.window
    )
    order = channel_order(loaded, windows_BL, campaign.criterion, None).order
    if bits == torch.float64:
        order = replace(order, channel_means=None, column_means=None)
    nn.Module.to(loaded.model, bits)
    reorder(loaded.model, order)
    ids_BL, largest_logit, views = windows_BL[:1], 0.0, 0.0
    candidates = random_candidates(_space(loaded, campaign, ratio, order), count)
    for candidate in candidates:
        masked_LV = _logits(loaded, ids_BL, _masked(loaded, candidate))
        views_LV = _logits(loaded, ids_BL, pruned(loaded.model, candidate))
        largest_logit = max(largest_logit, float(masked_LV.abs().max()))
        views = max(views, _difference(masked_LV, views_LV))
    # This changes the model for good, so it comes last.
    narrow(loaded.model, candidates[-1])
    removed = _difference(masked_LV, _logits(loaded, ids_BL, nullcontext()))
    return _Compared(views, removed, largest_logit)


def _space(loaded: LoadedModel, campaign: Campaign, ratio: str, order: ChannelOrder) -> WidthSpace:
    """Return the space of the widths of a loaded model."""
    sizes = loaded.sizes
    return WidthSpace.parse(
        width_shape_of(loaded.model),
        ratio,
        sizes.params(),
        sizes.bytes_per_param,
        align=campaign.align,
        order=order.digest,
        biases=order.biases,
    )


@contextmanager
def _masked(loaded: LoadedModel, candidate: LayerWidths) -> Iterator[None]:
    """Replace the inputs of removed columns by their means, or by zeros, in the dense model."""
    order = order_of(loaded.model)
    assert order is not None
    with ExitStack() as stack:
        for index, block in enumerate(blocks_of(loaded.model)):
            mlp, attention = mlp_of(loaded.model, block), attention_of(loaded.model, block)
            if mlp is not None:
                kept = candidate.channels[index]
                means_C = _of(order.channel_means, index, order.channels[index])
                stack.enter_context(_replaced_inputs(mlp.output, kept, means_C))
            if attention is not None:
                kept = candidate.groups[index] * attention.query_rows
                columns_J = torch.arange(attention.query_rows)
                own = order.groups[index][:, None] * attention.query_rows + columns_J
                means_C = _of(order.column_means, index, own.flatten())
                stack.enter_context(_replaced_inputs(attention.output, kept, means_C))
        yield


def _of(means: tuple[torch.Tensor, ...] | None, index: int, own_C: torch.Tensor) -> torch.Tensor:
    """Return the means of a block in the order of its columns; zeros if there are none."""
    if means is None:
        return torch.zeros(len(own_C))
    return means[index][own_C]


@contextmanager
def _replaced_inputs(output: nn.Linear, kept: int, means_C: torch.Tensor) -> Iterator[None]:
    """Replace the inputs of an output projection after the first `kept` ones by their means."""

    def replaced(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = inputs[0].clone()
        hidden[..., kept:] = means_C[kept:].to(hidden.dtype)
        return (hidden,)

    handle = output.register_forward_pre_hook(replaced)
    try:
        yield
    finally:
        handle.remove()


@torch.inference_mode()
def _logits(
    loaded: LoadedModel, ids_BL: torch.Tensor, changed: AbstractContextManager[object]
) -> torch.Tensor:
    """Return the logits of a changed model, shape (L, V)."""
    with changed:
        logits_BLV = loaded.model(input_ids=ids_BL, use_cache=False).logits
    return torch.as_tensor(logits_BLV[0])


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


# Memory.


@dataclass(frozen=True)
class _Memory:
    """Memory of a process in bytes.

    Attributes:
        before, after: resident memory before and after the candidates were scored.
        copied: bytes of weights that a narrowed model holds and the dense one does not.
        weights: bytes of the model.
    """

    before: int
    after: int
    copied: int
    weights: int


def _memory(record: Record, campaign: Campaign) -> None:
    """Score candidates in a process of its own, and compare its memory before and after."""
    # The cache is empty, so that each candidate is scored.
    fresh = replace(campaign, folder=campaign.folder / "memory")
    count = record.by_size(_MEMORY_CANDIDATES, 20, 4)
    if record.size == "smoke":
        found = _watched(fresh, count)
    else:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(_watched, (fresh, count))
    record.add("memory_candidates", count)
    record.add("memory_growth_mib", (found.after - found.before) / _MIB)
    record.add("memory_growth_share_of_weights", (found.after - found.before) / found.weights)
    record.add("memory_copied_weights_bytes", found.copied, "== 0")


def _watched(campaign: Campaign, count: int) -> _Memory:
    """Score candidates in this process."""
    ratio = campaign.ratios[0]
    with open_session(campaign.recipe(target=ratio), campaign.options()) as session:
        space = session.space_of(campaign.recipe(target=ratio).search)
        assert isinstance(space, WidthSpace)
        # What libraries allocate once does not count.
        first, *others = random_candidates(space, count + 3, seed=1)
        session.engine.evaluate_now([first, *others[:2]])
        before = _resident()
        for candidate in others[2:]:
            session.engine.evaluate_now([candidate])
        after = _resident()
        model = session.loaded.model
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        copied = 0
        with pruned(model, first):
            for name, parameter in model.named_parameters():
                if name.endswith("weight") and parameter.untyped_storage().data_ptr() not in own:
                    copied += parameter.nbytes
        return _Memory(before, after, copied, session.loaded.sizes.bytes())


def _resident() -> int:
    """Return the resident memory of this process in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


# Budgets.


def _budgets(record: Record) -> None:
    """Let every sampler propose widths, and compare what they remove with the budget.

    The space is that of `endpoint.fuzz_space`; no model is needed.
    """
    trials = record.by_size(200, 100, 12)
    space = fuzz_space()
    samplers, checked, missed = 0, 0, 0
    for entry in REGISTRY.entries():
        # Proposals of the sampler `llm` are counted in the part `endpoint`.
        if entry.needs_llm or entry.no_widths:
            continue
        sampler = build(entry.name, space, seed=0, ranking=_ranking(entry, space))
        study = optuna.create_study()
        samplers += 1
        for _ in range(trials):
            proposal = sampler.ask(study)
            candidate = proposal.candidate
            assert isinstance(candidate, LayerWidths)
            value = float(np.square(1 - np.array(candidate.channels) / _CHANNELS) @ _WEIGHTS)
            if proposal.partial_subset:
                report(study, proposal.number, space.count(candidate), value)
                study.tell(proposal.number, state=TrialState.PRUNED)
                continue
            checked += 1
            missed += space.count(candidate) != space.budget
            study.tell(proposal.number, value)
    record.add("budget_samplers", samplers)
    record.add("budget_candidates", checked)
    record.add("budget_missed", missed, "== 0")


def _ranking(entry: AlgorithmEntry, space: WidthSpace) -> list[float] | None:
    """Return a ranking for a sampler that cannot do without one."""
    if not entry.needs_ranking:
        return None
    ranking: list[float] = np.random.default_rng(0).random(space.n_units).tolist()
    return ranking
