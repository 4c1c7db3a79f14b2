"""Which sampler finds the best pruning rates with equal evaluations, and what does an LLM add?

Fixed allocations, samplers, and three variants of the sampler that asks a language model search the
same space. Samplers are compared after the same number of evaluations. The replies of a language
model take long, so its searches may be shorter: the others are then compared with them after as
many evaluations, in a comparison of its own. Winners are scored on held-out data.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.rates_parts.campaign import VARIANTS, Campaign, searches_of
from benchmarks.rates_parts.fixed import Fixed, score_fixed
from benchmarks.rates_parts.held_out import (
    HeldOut,
    HeldOutScorer,
    mean_and_sd,
    mean_and_stderr,
    won_back,
)
from benchmarks.rates_parts.optimizer import serving
from benchmarks.rates_parts.studies import Trace, read
from benchmarks.support.record import Record
from benchmarks.support.searches import left, run_all
from prunesearch.candidate import LayerSubset
from prunesearch.pipeline.session import Session, open_session
from prunesearch.widths.layer_widths import LayerWidths

_COMPARED = ("evolution", "pso", "random", "llm-shuffled", "llm-renamed")
"""What the sampler `llm` is compared with."""
_SHARE = 0.10
"""Share of the lost log-perplexity that searched rates shall win back."""


def measure(record: Record, campaign: Campaign) -> None:
    """Add the figures of all searches of SmolLM2."""
    measure_campaign(record, campaign, "search", _SHARE)


def measure_campaign(
    record: Record, campaign: Campaign, part: str, bound: float | None = None
) -> None:
    """Search all studies of a campaign and add their figures.

    Args:
        record: record of the benchmark.
        campaign: settings.
        part: name of the part, which figures begin with.
        bound: share that the best sampler shall win back; None for no target.
    """
    methods = run_studies(campaign)
    first = campaign.recipe(target=campaign.ratios[0])
    with open_session(first, campaign.options()) as session:
        scorer = HeldOutScorer(session, campaign)
        (dense,) = scorer.score([LayerSubset.of(session.loaded.n_layers)])
        notes: dict[str, Any] = {}
        plain = [method for method in methods if method not in VARIANTS]
        for ratio in campaign.ratios:
            name = f"{part}_{ratio.rstrip('%')}"
            scored = Scored(session, scorer, ratio, campaign.trials, dense)
            compared = Compared.of(campaign, scored, plain)
            compared.add_to(record, name, bound)
            notes[ratio] = compared.as_notes()
            if len(methods) > len(plain):
                scored = replace(scored, trials=campaign.llm_trials)
                compared = Compared.of(campaign, scored, methods)
                compared.add_to(record, f"{name}_llm")
                notes[f"{ratio}, with a language model"] = compared.as_notes()
        record.notes[part] = notes


def run_studies(campaign: Campaign) -> list[str]:
    """Search all studies; return the methods that could be searched."""
    plain = [method for method in campaign.samplers if method not in VARIANTS]
    run_all(searches_of(campaign, plain), campaign.workers)
    asking = [method for method in campaign.samplers if method in VARIANTS]
    if campaign.optimizer is None or not asking:
        return plain
    searches = searches_of(campaign, asking)
    if left(searches):
        with serving(campaign) as served:
            run_all(searches_of(served, asking), campaign.slots)
    return [*plain, *asking]


@dataclass(frozen=True)
class Row:
    """The searches of one method at one ratio, one for each seed.

    Attributes:
        method: name of the method.
        traces: the studies.
        kl: best KL on the search data.
        held_out: the winners on held-out data.
        won: share of the lost log-perplexity that each winner wins back.
    """

    method: str
    traces: tuple[Trace, ...]
    kl: tuple[float, ...]
    held_out: tuple[HeldOut, ...]
    won: tuple[float, ...]


@dataclass(frozen=True)
class Scored:
    """How the candidates of a comparison are scored.

    Attributes:
        session: session of the searches.
        scorer: scorer on held-out data.
        ratio: share that is removed.
        trials: evaluations after which the samplers are compared.
        dense: quality of the dense model.
    """

    session: Session
    scorer: HeldOutScorer
    ratio: str
    trials: int
    dense: HeldOut


@dataclass(frozen=True)
class Compared:
    """Several methods at one ratio.

    Attributes:
        campaign: settings.
        trials: evaluations after which the samplers are compared.
        dense: quality of the dense model.
        fixed: fixed allocations, the best variant of each.
        baseline: the fixed allocation that is best on the held-out text.
        rows: the searches.
    """

    campaign: Campaign
    trials: int
    dense: HeldOut
    fixed: tuple[Fixed, ...]
    baseline: Fixed
    rows: tuple[Row, ...]

    @classmethod
    def of(cls, campaign: Campaign, scored: Scored, methods: Sequence[str]) -> "Compared":
        """Score the fixed allocations and the winners of the methods at a ratio."""
        session, scorer, dense = scored.session, scored.scorer, scored.dense
        fixed = score_fixed(session, campaign, scorer, scored.ratio)
        # The strictest baseline: searches do not see this text, and it is chosen on it.
        baseline = min(fixed, key=lambda each: each.held_out.perplexity)
        rows = []
        for method in methods:
            traces = []
            for search in searches_of(campaign, [method]):
                if search.ratio == scored.ratio:
                    traces.append(read(search))
            winners = [trace.winner(session, scored.trials) for trace in traces]
            held_out = tuple(scorer.score(winners))
            won = tuple(won_back(each, baseline.held_out, dense) for each in held_out)
            kl = tuple(trace.at(scored.trials) for trace in traces)
            rows.append(Row(method, tuple(traces), kl, held_out, won))
        return cls(campaign, scored.trials, dense, tuple(fixed), baseline, tuple(rows))

    @property
    def best(self) -> Row:
        """The sampler with the best mean KL on the search data."""
        return min(self.rows, key=lambda row: mean_and_sd(row.kl)[0])

    def row(self, method: str) -> Row | None:
        """Return the searches of a method; None if it was not searched."""
        return next((row for row in self.rows if row.method == method), None)

    def add_to(self, record: Record, name: str, bound: float | None = None) -> None:
        """Add the figures.

        Args:
            record: record of the benchmark.
            name: prefix of the figures.
            bound: share that the best sampler shall win back.
        """
        evaluations = []
        for row in self.rows:
            evaluations += [min(trace.distinct, self.trials) for trace in row.traces]
        record.add(f"{name}_fewest_evaluations", min(evaluations), f"== {self.trials}")
        record.add(f"{name}_dense_perplexity", self.dense.perplexity)
        for each in self.fixed:
            record.add(f"{name}_{each.entry}_kl", each.kl)
            record.add(f"{name}_{each.entry}_perplexity", each.held_out.perplexity)
        for row in self.rows:
            self._add_row(record, f"{name}_{row.method}", row)
        if bound is not None:
            won = mean_and_sd(self.best.won)[0]
            record.add(f"{name}_best_sampler_won_back", won, f">= {bound}")
        self._add_hellaswag(record, name)
        self._add_llm(record, name)

    @staticmethod
    def _add_row(record: Record, name: str, row: Row) -> None:
        """Add the figures of one method."""
        kl, kl_sd = mean_and_sd(row.kl)
        won, won_sd = mean_and_sd(row.won)
        record.add(f"{name}_kl", kl)
        record.add(f"{name}_kl_sd", kl_sd)
        record.add(f"{name}_perplexity", mean_and_sd([f.perplexity for f in row.held_out])[0])
        record.add(f"{name}_won_back", won)
        record.add(f"{name}_won_back_sd", won_sd)

    def _add_hellaswag(self, record: Record, name: str) -> None:
        """Add the difference of HellaSwag between the best sampler and the best fixed allocation.

        The difference is taken document by document, over all seeds.
        """
        if not self.baseline.held_out.right:
            return
        before = self.baseline.held_out.right
        differences = []
        for document, right in enumerate(before):
            own = [each.right[document] for each in self.best.held_out]
            differences.append(sum(own) / len(own) - right)
        mean, stderr = mean_and_stderr(differences)
        record.add(f"{name}_dense_acc_norm", self.dense.acc_norm)
        record.add(f"{name}_best_sampler_acc_norm_gain", mean)
        record.add(f"{name}_best_sampler_acc_norm_gain_stderr", stderr)

    def _add_llm(self, record: Record, name: str) -> None:
        """Add what the language model adds, as paired differences of KL over the seeds."""
        llm = self.row("llm")
        if llm is None:
            return
        for method in _COMPARED:
            other = self.row(method)
            if other is None:
                continue
            differences = [a - b for a, b in zip(llm.kl, other.kl, strict=True)]
            mean, stderr = mean_and_stderr(differences)
            record.add(f"{name}_minus_{method}_kl", mean)
            record.add(f"{name}_minus_{method}_kl_stderr", stderr)
        evolution = self.row("evolution")
        if evolution is not None:
            self._add_equal_seconds(record, name, llm, evolution)
        for source in ("first", "model", "repaired", "fallback"):
            shares = [t.shares.shares[source] for t in llm.traces if t.shares is not None]
            if shares:
                record.add(f"{name}_share_{source}", mean_and_sd(shares)[0])

    def _add_equal_seconds(self, record: Record, name: str, llm: Row, evolution: Row) -> None:
        """Compare with evolution after as many seconds as the language model's search took."""
        differences, covered = [], []
        for own, other in zip(llm.traces, evolution.traces, strict=True):
            seconds = float(own.seconds[min(self.trials, len(own.seconds)) - 1])
            differences.append(own.at(self.trials) - other.after_seconds(seconds))
            covered.append(min(1.0, float(other.seconds[-1]) / max(seconds, 1e-9)))
        mean, stderr = mean_and_stderr(differences)
        record.add(f"{name}_minus_evolution_kl_at_equal_seconds", mean)
        record.add(f"{name}_minus_evolution_kl_at_equal_seconds_stderr", stderr)
        # Below 1, evolution had less time, so the difference flatters the language model.
        record.add(f"{name}_evolution_share_of_llm_seconds", mean_and_sd(covered)[0])

    def as_notes(self) -> dict[str, Any]:
        """Return everything as JSON values, from which the tables and plots are made."""
        fixed, rows = [], []
        for each in self.fixed:
            candidate = each.held_out.candidate
            fixed.append({"name": each.name, "entry": each.entry, "kl": each.kl})
            fixed[-1] |= {"held_out": _held_out(each.held_out), "rates": rates_of(candidate)}
        for row in self.rows:
            studies = []
            for trace, held_out, won in zip(row.traces, row.held_out, row.won, strict=True):
                studies.append(_study(trace, held_out, won, self.trials))
            rows.append({"method": row.method, "studies": studies})
        return {
            "trials": self.trials,
            "dense": _held_out(self.dense),
            "baseline": self.baseline.name,
            "best": self.best.method,
            "fixed": fixed,
            "rows": rows,
        }


def _held_out(found: HeldOut) -> dict[str, float | None]:
    """Return a quality as JSON values."""
    values = {"perplexity": found.perplexity, "acc_norm": found.acc_norm, "stderr": found.stderr}
    return {name: None if math.isnan(value) else round(value, 5) for name, value in values.items()}


def _study(trace: Trace, held_out: HeldOut, won: float, trials: int) -> dict[str, Any]:
    """Return a study as JSON values."""
    study: dict[str, Any] = {
        "seed": trace.search.seed,
        "kl": trace.at(trials),
        "held_out": _held_out(held_out),
        "won_back": round(won, 5),
        "distinct": trace.distinct,
        "seconds": round(float(trace.seconds[min(trials, len(trace.seconds)) - 1]), 1),
        "best": [round(value, 5) for value in trace.best.tolist()],
        "rates": rates_of(held_out.candidate),
        "widths": held_out.candidate.text,
    }
    if trace.shares is not None:
        replies = trace.shares.replies
        study["llm"] = {
            "shares": trace.shares.shares,
            "mean_repair": trace.shares.mean_repair,
            "calls": replies.calls,
            "failed": replies.failed,
            "invalid": replies.invalid,
            "rejected": replies.rejected,
            "duplicates": replies.duplicates,
            "tokens": replies.prompt_tokens + replies.completion_tokens,
            "seconds": replies.seconds,
        }
    return study


def rates_of(candidate: LayerSubset) -> list[list[float]]:
    """Return the share that each layer's MLP and each layer's attention lost."""
    if not isinstance(candidate, LayerWidths):
        gone = [float(index in candidate.dropped) for index in range(candidate.n_layers)]
        return [gone, gone]
    rates = []
    shape = candidate.shape
    for kept, full in ((candidate.channels, shape.channels), (candidate.groups, shape.groups)):
        lost = []
        for width, whole in zip(kept, full, strict=True):
            lost.append(round(1 - width / max(whole, 1), 4))
        rates.append(lost)
    return rates
