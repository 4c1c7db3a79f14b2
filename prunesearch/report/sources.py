"""Text about the sources of a study's candidates, and what a language model has cost."""

from prunesearch.report.tables import duration
from prunesearch.studies.sources import SOURCES, Replies, Source, SourceShares
from prunesearch.units import noun_for, plural

_TITLES: dict[Source, tuple[str, str]] = {
    "first": ("first candidate", "first candidates"),
    "model": ("from the model", "from the model"),
    "repaired": ("from the model, repaired", "from the model, repaired"),
    "fallback": ("fall-back", "fall-back"),
}
"""Names of the sources, after one candidate and after several."""


def source_lines(sources: SourceShares | None) -> list[str]:
    """Return two lines: the shares of the sources, and the replies. Empty without a model."""
    if sources is None:
        return []
    words = []
    for source in SOURCES:
        count = getattr(sources, source)
        if count:
            title = noun_for(count, *_TITLES[source])
            words.append(f"{count} {title} ({sources.shares[source]:.0%})")
    line = f"candidates: {', '.join(words)}"
    if sources.repaired:
        line += f"; {sources.mean_repair:.0%} of a repaired one was changed in the mean"
    return [line, _reply_line(sources.replies)]


def _reply_line(replies: Replies) -> str:
    """Return a line about the replies. Counts that are 0 are left out."""
    line = f"language model: {replies.calls} {noun_for(replies.calls, 'reply', 'replies')}"
    if replies.replayed:
        line += f" ({replies.replayed} recorded before)"
    for count, name in (
        (replies.failed, noun_for(replies.failed, "failed request")),
        (replies.duplicates, f"{noun_for(replies.duplicates, 'candidate')} known before"),
        (replies.invalid, "invalid"),
        (replies.rejected, "far from the budget"),
    ):
        if count:
            line += f", {count} {name}"
    line += (
        f"; {plural(replies.prompt_tokens, 'token')} read, {replies.completion_tokens:,} written"
    )
    line += f", {duration(replies.seconds)}"
    if replies.cost is not None:
        line += f", cost {replies.cost:.4g}"
    return line
