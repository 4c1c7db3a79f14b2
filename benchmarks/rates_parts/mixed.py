"""Blocks and widths in one search, against blocks alone and widths alone, at equal parameters.

The budget is the size of a number of whole blocks, so that all three searches can remove exactly
as much. The winners are made for good and timed in turns with the dense model.
"""

from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from benchmarks.rates_parts.campaign import Campaign, Search
from benchmarks.rates_parts.held_out import HeldOut, HeldOutScorer, mean_and_sd
from benchmarks.rates_parts.studies import Trace, read
from benchmarks.support import speed
from benchmarks.support.record import Record
from benchmarks.support.searches import run_all
from prunesearch.candidate import LayerSubset
from prunesearch.models.loading import load
from prunesearch.models.narrowing import narrow
from prunesearch.models.reordering import order_of, reorder
from prunesearch.models.surgery import remove
from prunesearch.models.width_shape import width_shape_of
from prunesearch.pipeline.session import Session, open_session
from prunesearch.widths.layer_widths import LayerWidths

_SAMPLER = "pso"
_SHARE = 0.2
"""Share of the parameters that is removed, rounded to whole blocks."""


def measure(record: Record, campaign: Campaign) -> None:
    """Add quality and speed of the three kinds of search."""
    searches = _searches(campaign)
    for of_kind in searches.values():
        run_all(of_kind, campaign.workers)
    rows: list[dict[str, Any]] = []
    lean: dict[str, PreTrainedModel] = {}
    for kind, of_kind in searches.items():
        traces = [read(search) for search in of_kind]
        with open_session(of_kind[0].recipe, campaign.options()) as session:
            scorer = HeldOutScorer(session, campaign)
            winners = [trace.winner(session, campaign.trials) for trace in traces]
            found = scorer.score(winners)
            if not rows:
                (dense,) = scorer.score([LayerSubset.of(session.loaded.n_layers)])
                rows.append(_row("dense", [], [dense], session.loaded.sizes.params()))
                lean["dense"] = load(campaign.model, device="cpu").model
            best = min(range(len(traces)), key=lambda each: traces[each].at(campaign.trials))
            rows.append(_row(kind, traces, found, session.loaded.sizes.params(winners[best])))
            rows[-1]["blocks_dropped"] = len(winners[best].dropped)
            lean[kind] = _made(campaign, session, winners[best])
        record.add(f"mixed_{kind}_kl", rows[-1]["kl"])
        record.add(f"mixed_{kind}_perplexity", rows[-1]["perplexity"])
    _add_speed(record, lean, rows)
    record.notes["mixed"] = rows


def _searches(campaign: Campaign) -> dict[str, list[Search]]:
    """Return the studies of each kind of search."""
    loaded = load(campaign.model, device="cpu")
    shape = width_shape_of(loaded.model)
    drop = max(1, round(_SHARE * loaded.sizes.params() / loaded.sizes.block_params[0]))
    target = str(drop * shape.weights // shape.n_layers)
    plain = replace(campaign, long_trials=campaign.trials)
    spaces = {
        "blocks": (("drop", str(drop)),),
        "widths": (("target", target),),
        "blocks+widths": (("target", target), ("space", "blocks+widths")),
    }
    found = {}
    for kind, space in spaces.items():
        found[kind] = [
            Search(plain, f"mixed-{kind}", _SAMPLER, seed, space) for seed in campaign.seeds
        ]
    return found


def _row(kind: str, traces: list[Trace], found: list[HeldOut], params: int) -> dict[str, Any]:
    """Return the quality of the winners of a kind of search, as JSON values."""
    kl = [trace.at(trace.search.campaign.trials) for trace in traces] or [0.0]
    return {
        "kind": kind,
        "parameters": params,
        "kl": round(mean_and_sd(kl)[0], 5),
        "kl_sd": round(mean_and_sd(kl)[1], 5),
        "perplexity": round(mean_and_sd([each.perplexity for each in found])[0], 3),
        "acc_norm": round(mean_and_sd([each.acc_norm for each in found])[0], 4),
        "blocks_dropped": 0,
    }


def _made(campaign: Campaign, session: Session, candidate: LayerSubset) -> PreTrainedModel:
    """Return a model of its own in which the candidate is made for good."""
    loaded = load(campaign.model, device="cpu")
    if isinstance(candidate, LayerWidths):
        order = order_of(session.loaded.model)
        assert order is not None
        reorder(loaded.model, order)
        narrow(loaded.model, candidate)
    return remove(loaded.model, LayerSubset.of(candidate.n_layers, candidate.dropped))


def _add_speed(
    record: Record, lean: dict[str, PreTrainedModel], rows: list[dict[str, Any]]
) -> None:
    """Time the models in turns, and add the times and their ratios to the dense model's."""
    tokens, turns = record.by_size(256, 256, 32), record.by_size(15, 5, 1)
    found = speed.compare(lean, tokens, turns)
    dense = found["dense"]
    for row in rows:
        times = found[row["kind"]]
        row["prefill_ms"] = round(times.prefill_ms, 2)
        row["decode_ms"] = round(times.decode_ms, 3)
        if row["kind"] != "dense":
            name = f"mixed_{row['kind']}"
            record.add(f"{name}_prefill_speedup", dense.prefill_ms / times.prefill_ms)
            record.add(f"{name}_decode_speedup", dense.decode_ms / times.decode_ms)
