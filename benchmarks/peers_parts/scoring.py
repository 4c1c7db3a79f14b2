"""Scores fixed candidates by a published protocol, through the cache."""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.peers_parts.candidates import Fixed
from benchmarks.peers_parts.published import DENSE
from prunesearch import events
from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.evaluation.engine import LocalEngine
from prunesearch.models.loading import LoadedModel
from prunesearch.objectives.next_token_loss import loss_objective
from prunesearch.objectives.protocol_windows import FULL_TEXT, read_protocol
from prunesearch.objectives.protocols import protocol_of

_SAME_LOSS = 0.02
"""Largest difference of loss from the published dense model, in nats per token."""


@dataclass(frozen=True)
class Scored:
    """A candidate with its perplexity.

    Attributes:
        protocol: name of the protocol.
        method, ratio, dropped: who chose the candidate, how much it removes, and what.
        share_left: share of the parameters that stays.
        perplexity, stderr: perplexity, and its standard error over windows.
        published: the published perplexity; None without.
        comparable: whether the text and the dense model are the published ones.
        said: what to know about the row.
    """

    protocol: str
    method: str
    ratio: float
    dropped: str
    share_left: float
    perplexity: float
    stderr: float | None
    published: float | None
    comparable: bool
    said: str

    @property
    def key(self) -> str:
        """Name of the row's figure."""
        method = re.sub(r"\W+", "_", self.method)
        return f"{self.protocol.replace('-', '_')}_{method}_{1000 * self.ratio:.0f}"

    def as_notes(self) -> dict[str, Any]:
        """Return the row as JSON values. A perplexity that is not finite is None."""
        notes = asdict(self)
        if not math.isfinite(self.perplexity):
            notes["perplexity"] = None
        return notes


def _other_weights(perplexity: float, published: float) -> str:
    """Return why a dense model is not the published one; empty if it may be.

    Fine-tuned models have the shape of their base model, and another perplexity.
    """
    if abs(math.log(perplexity / published)) <= _SAME_LOSS:
        return ""
    return f"not comparable: the dense model has {perplexity:.2f}, and {published:.2f} is published"


def score(
    loaded: LoadedModel,
    cache: EvaluationCache,
    candidates: Sequence[Fixed],
    protocol: str,
    data: str | None,
    most_windows: int | None = None,
) -> list[Scored]:
    """Score candidates one after the other, so that an interrupted run keeps what it has.

    Args:
        loaded: the dense model.
        cache: cache of the scores.
        candidates: the candidates.
        protocol: name of the protocol.
        data: file with its text; None: from the hub.
        most_windows: largest number of windows; None: all.
    """
    read = read_protocol(protocol_of(protocol), loaded.tokenizer, data)
    windows_BL = read.windows_BL[:most_windows]
    comparable = read.text == FULL_TEXT and len(windows_BL) == len(read.windows_BL)
    engine = LocalEngine(loaded, loss_objective(loaded, windows_BL), cache)
    rows = []
    other = ""  # why the weights are not the published ones
    for fixed in candidates:
        (evaluation,) = engine.evaluate_now([fixed.candidate])
        said = fixed.note
        perplexity = evaluation.metrics.get("perplexity", float("inf"))
        if evaluation.failure is not None:
            said = f"failed: {evaluation.failure}"
        published = None
        if fixed.published is not None:
            published = fixed.published[0 if protocol.startswith("wikitext2") else 1]
            if not comparable:
                said = f"{said or read.text}, {len(windows_BL)} windows: not comparable"
            elif fixed.method == DENSE and published is not None:
                other = _other_weights(perplexity, published)
        if other:
            said = f"{said}; {other}" if said else other
        rows.append(
            Scored(
                protocol,
                fixed.method,
                fixed.ratio,
                fixed.candidate.text,
                loaded.sizes.params(fixed.candidate) / loaded.sizes.params(),
                perplexity,
                evaluation.stderr.get("perplexity"),
                published,
                comparable and not other,
                said,
            )
        )
        events.tell(
            events.StageProgress(f"{protocol}, {fixed.method} {fixed.ratio:.1%}: {perplexity:.2f}")
        )
    return rows
