"""Writes the notes of the searches as Markdown tables, for the page of results."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def markdown(notes: Mapping[str, Any]) -> str:
    """Return the tables of all parts that have some."""
    parts: list[str] = []
    for part in ("search", "large"):
        for ratio, found in notes.get(part, {}).items():
            # A second comparison of a ratio is named after it, as in "20%, with a language model".
            share, comma, rest = ratio.partition(",")
            parts.append(f"## {part}, {share} removed{comma}{rest}\n")
            parts.append(_methods(found))
            llm = _llm(found)
            if llm:
                parts.append(llm)
    if "mixed" in notes:
        parts.append("## mixed\n")
        parts.append(_table(list(notes["mixed"][0]), [list(r.values()) for r in notes["mixed"]]))
    if "exported_speed" in notes:
        rows = notes["exported_speed"]
        parts.append("## exported speed\n")
        parts.append(_table(list(rows[0]), [list(row.values()) for row in rows]))
    return "\n".join(parts)


def _methods(found: Mapping[str, Any]) -> str:
    """Return the table of fixed allocations and samplers."""
    head = ["", "KL", "perplexity", "HellaSwag acc_norm", "won back", "seconds of a search"]
    rows = [["dense", "0", *_quality([found["dense"]]), "", ""]]
    for each in found["fixed"]:
        name = each["name"] + (" (baseline)" if each["name"] == found["baseline"] else "")
        rows.append([name, f"{each['kl']:.4f}", *_quality([each["held_out"]]), "", ""])
    for row in found["rows"]:
        studies = row["studies"]
        name = f"**{row['method']}**" if row["method"] == found["best"] else row["method"]
        rows.append(
            [
                name,
                _spread([study["kl"] for study in studies], 4),
                *_quality([study["held_out"] for study in studies]),
                _spread([100 * study["won_back"] for study in studies], 1) + " %",
                f"{statistics.fmean(study['seconds'] for study in studies):.0f}",
            ]
        )
    return _table(head, rows)


def _quality(found: Sequence[Mapping[str, float | None]]) -> tuple[str, str]:
    """Return the mean perplexity and accuracy of candidates, as text."""
    perplexity = _spread([float(each["perplexity"] or 0) for each in found], 2)
    accuracies = [each["acc_norm"] for each in found]
    if None in accuracies:
        return perplexity, ""
    mean = statistics.fmean(float(value or 0) for value in accuracies)
    return perplexity, f"{mean:.3f} (se {float(found[0]['stderr'] or 0):.3f})"


def _llm(found: Mapping[str, Any]) -> str:
    """Return the table of what the language model was asked and replied; empty without one."""
    names = ("calls", "failed", "invalid", "rejected", "duplicates", "tokens", "seconds")
    rows = []
    for row in found["rows"]:
        asked = [study["llm"] for study in row["studies"] if "llm" in study]
        if not asked:
            continue
        cells = [row["method"]]
        for source in ("first", "model", "repaired", "fallback"):
            cells.append(f"{statistics.fmean(each['shares'][source] for each in asked):.2f}")
        for name in names:
            cells.append(f"{statistics.fmean(each[name] for each in asked):.0f}")
        rows.append(cells)
    if not rows:
        return ""
    return _table(["mean of a search", "first", "model", "repaired", "fallback", *names], rows)


def _spread(values: Sequence[float], digits: int) -> str:
    """Return the mean, and the standard deviation of several values."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
