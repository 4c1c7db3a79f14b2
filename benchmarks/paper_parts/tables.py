"""The page of results: the paper's Table 4 with all methods, the paired tests, the paper's numbers."""

import math
from collections.abc import Mapping, Sequence

from benchmarks.paper_parts import published
from benchmarks.paper_parts.comparison import TESTED, Comparison, Row, Spread
from benchmarks.paper_parts.measuring import Measured
from benchmarks.paper_parts.methods import KL_RANKING, METHODS
from benchmarks.paper_parts.timing import Times


def markdown(
    rows: Sequence[Row],
    comparisons: Sequence[Comparison],
    dense: Measured,
    times: Mapping[int, Times],
) -> str:
    """Return all tables and what they say.

    Args:
        rows: all methods at all k.
        comparisons: the paired tests.
        dense: the dense model on the held-out documents.
        times: times by number of dropped blocks; 0 is the dense model.
    """
    parts = ["## Table 4, with all methods\n", _table4(rows, dense, times)]
    parts += ["## Does the choice matter?\n", _verdicts(comparisons)]
    parts += ["## Paired tests\n", _tests(comparisons)]
    parts += ["## The paper's numbers\n", _published(rows, dense)]
    return "\n".join(parts)


def spread(value: Spread, digits: int = 4) -> str:
    """Return a mean with its standard error, as text."""
    if math.isnan(value.stderr):
        return f"{value.mean:.{digits}f}"
    return f"{value.mean:.{digits}f} ± {value.stderr:.{digits}f}"


def label_of(method: str) -> str:
    """Return what a method is."""
    if method == KL_RANKING:
        return "one-shot by KL without each block, first k"
    return METHODS[method].label


def _table4(rows: Sequence[Row], dense: Measured, times: Mapping[int, Times]) -> str:
    """Return the paper's Table 4."""
    head = (
        "k", "method", "seeds", "evaluations", "search (s)", "size (MB)", "prefill (ms)", "decode (ms)",
        "fitness, searched on", "acc_norm, held out", "held out, healed",
    )  # fmt: skip
    body = [
        ["0", "dense", "", "", "", f"{dense.bytes / 1e6:.1f}", *_speed(times.get(0)), "",
         f"{dense.acc_norm:.4f}", ""]
    ]  # fmt: skip
    for row in rows:
        searched = spread(Spread.of(row.searched_on)) if row.searched_on else ""
        if searched and row.by_kl:
            searched = f"KL {searched}"
        body.append(
            [
                str(row.k),
                row.method,
                str(len(row.winners)),
                str(row.evaluations) if row.evaluations else "",
                spread(Spread.of(row.seconds), 0) if row.seconds else "",
                f"{row.pruned[0].bytes / 1e6:.1f}",
                *_speed(times.get(row.k)),
                searched,
                spread(row.accuracy(healed=False)),
                spread(row.accuracy(healed=True)) if row.healed else "",
            ]
        )
    said = (
        f"± is the standard error over seeds. The standard error of one accuracy over documents is "
        f"{dense.stderr:.4f}. Size and time depend on k alone, because all blocks are equal. Sizes "
        "are in 10^6 bytes, in the model's number type."
    )
    names = "; ".join(f"`{row}`: {label_of(row)}" for row in dict.fromkeys(r.method for r in rows))
    return f"{table(head, body)}\n{said}\n\n{names}.\n"


def _speed(times: Times | None) -> tuple[str, str]:
    """Return the times of a prefill and of a decoded token, as text."""
    if times is None:
        return "", ""
    return spread(times.prefill_ms, 1), spread(times.decode_ms, 1)


def _verdicts(comparisons: Sequence[Comparison]) -> str:
    """Say for each of the paper's algorithms how often it is better, worse, or not told apart."""
    lines = []
    for first in TESTED:
        for healed in (False, True):
            own = [c for c in comparisons if c.first == first and c.healed == healed]
            if not own:
                continue
            counts = dict.fromkeys(("better", "worse", "not told apart"), 0)
            named: dict[str, list[str]] = {word: [] for word in counts}
            for each in own:
                counts[each.verdict] += 1
                named[each.verdict].append(f"{each.second} at k = {each.k}")
            state = "after healing" if healed else "before healing"
            line = f"* **{first}**, {state}, on held-out documents: "
            line += ", ".join(f"{count} {word}" for word, count in counts.items())
            for word in ("better", "worse"):
                if named[word]:
                    line += f". {word.capitalize()} than {', '.join(named[word])}"
            lines.append(line + ".")
    pairs = "A difference between two of these algorithms is counted at the first of them only."
    return "\n".join(lines) + f"\n\n{pairs}\n"


def _tests(comparisons: Sequence[Comparison]) -> str:
    """Return the table of paired tests."""
    head = ("k", "healed", "difference", "95 % interval", "p", "p (Holm)", "")
    body = []
    for each in comparisons:
        test = each.test
        body.append(
            [
                str(each.k),
                "yes" if each.healed else "no",
                f"{each.first} - {each.second} = {test.difference:+.4f}",
                f"{test.low:+.4f} to {test.high:+.4f}",
                f"{test.p:.4f}",
                f"{each.corrected:.4f}",
                each.verdict,
            ]
        )
    said = (
        "Sign-flip tests on the same held-out documents. A document's value is the share of seeds "
        "that answer it rightly. So the tests compare these winners; that other seeds would give other "
        "winners is not part of them. Holm's correction is over all rows of this table."
    )
    return f"{table(head, body)}\n{said}\n"


def _published(rows: Sequence[Row], dense: Measured) -> str:
    """Return the paper's numbers beside ours, and those that its own model contradicts."""
    head = ("", "paper, 10 of 80 blocks", "ours at the least k", "")
    least = min((row.k for row in rows), default=0)
    body: list[list[str]] = []
    for name, reported in published.REPORTED.items():
        own = next((r for r in rows if (r.k, r.method) == (least, name)), None)
        shares = {False: "", True: ""}
        smaller = ""
        if own is not None:
            smaller = f"{1 - own.pruned[0].bytes / dense.bytes:.2%}"
            for healed in shares:
                if own.measured(healed):
                    lost = 1 - own.accuracy(healed).mean / dense.acc_norm
                    shares[healed] = f"{lost:.2%}"
        before = "" if reported.lost_pruned is None else f"{reported.lost_pruned:.2%}"
        body.append([f"{name}: size removed", f"{reported.smaller:.2%}", smaller, ""])
        body.append([f"{name}: acc_norm lost", before, shares[False], "before LoRA"])
        body.append(
            [f"{name}: acc_norm lost", f"{reported.lost_healed:.2%}", shares[True], "after LoRA"]
        )
    lines = [f"* {sentence}" for sentence in published.contradictions()]
    said = (
        "Shares of the dense model's value. The models differ, so only the order of magnitude can be "
        "compared: Llama-3.1-70B has 500 times the parameters of SmolLM2-135M. The paper's numbers "
        "are those of its abstract and of summaries; its Table 4 was not at hand."
    )
    return f"{table(head, body)}\n{said}\n\n" + "\n".join(lines) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"
