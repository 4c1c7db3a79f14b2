"""The tables of the page: a summary of all landscapes, and one table for each."""

from collections.abc import Mapping, Sequence

from benchmarks.search_quality_parts.synthetic_results import Cell, Table, hill_climbing_wins


def markdown(tables: Mapping[str, Table], budgets: Sequence[int], seeds: int) -> str:
    """Return the tables as Markdown."""
    lines = [
        f"Mean excess over the best known value ± standard error, {seeds} seeds. `+` is better and "
        "`-` worse than `pso` without a ranking (paired test, p < .05 after Holm's correction "
        "within a landscape and budget).",
        "",
        *_summary(tables, budgets),
    ]
    for name, table in tables.items():
        lines += ["", f"### {name}", "", *_landscape(table, budgets)]
    lines += ["", "### Hill climbing and evolution", ""]
    for budget in budgets:
        wins = hill_climbing_wins(tables, budget)
        lines.append(
            f"* at {budget}: `hill-climbing` is better on {wins} of {len(tables)} landscapes"
        )
    return "\n".join(lines) + "\n"


def _summary(tables: Mapping[str, Table], budgets: Sequence[int]) -> list[str]:
    """Return how often each algorithm is better and worse than the reference."""
    names: list[str] = []
    for table in tables.values():
        names += [name for name in table if name not in names]
    head = " | ".join(f"{budget}: + / -" for budget in budgets)
    lines = [f"| landscapes: better / worse than pso | {head} |", "|---" * (len(budgets) + 1) + "|"]
    for name in sorted(names, key=lambda name: -_count(tables, name, budgets[-1], "better")):
        counts = []
        for budget in budgets:
            better = _count(tables, name, budget, "better")
            counts.append(f"{better} / {_count(tables, name, budget, 'worse')}")
        if any(cells[name][budgets[-1]].test for cells in tables.values() if name in cells):
            lines.append(f"| {name} | {' | '.join(counts)} |")
    return lines


def _count(tables: Mapping[str, Table], name: str, budget: int, verdict: str) -> int:
    """Return on how many landscapes an algorithm has a verdict."""
    count = 0
    for table in tables.values():
        if name in table and table[name][budget].verdict == verdict:
            count += 1
    return count


def _landscape(table: Table, budgets: Sequence[int]) -> list[str]:
    """Return the table of one landscape."""
    lines = [f"| | {' | '.join(map(str, budgets))} |", "|---" * (len(budgets) + 1) + "|"]
    for name, cells in table.items():
        shown = " | ".join(_shown(cells[budget]) for budget in budgets)
        lines.append(f"| {name} | {shown} |")
    return lines


def _shown(cell: Cell) -> str:
    """Return a cell as text."""
    if cell.mean is None:
        return "-"
    mark = {"better": " +", "worse": " -", "": ""}[cell.verdict]
    if cell.stderr is None:
        return f"{cell.mean:.4f}"
    return f"{cell.mean:.4f} ± {cell.stderr:.4f}{mark}"
