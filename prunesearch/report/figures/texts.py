"""What the models write after equal prompts: the dense one, the pruned and the healed ones."""

from prunesearch.report.figures.figure import Cell, Figure, GeneratedText, NumberTable
from prunesearch.report.figures.measured_names import latest, name_of
from prunesearch.report.figures.pooled import short_names
from prunesearch.report.figures.registry import FigureEntry, register
from prunesearch.report.figures.report_data import ReportData


def figure(report: ReportData) -> Figure | None:
    """Return the figure; None if no text was generated."""
    names = short_names(report.studies)
    several = len(report.studies) > 1
    # 1. Collect the texts of each prompt, each model once.
    prompts: dict[str, dict[str, str]] = {}
    for study, made in latest(report.measurements, report.studies):
        name = name_of(made, names[study.name], several)
        if len({other.model_content for other in report.studies}) > 1:
            name = f"{study.model_name}: {name}"
        for prompt, text in made.texts:
            prompts.setdefault(prompt, {})[name] = text
    if not prompts:
        return None
    # 2. Put them side by side.
    texts, rows = [], []
    for prompt, written in prompts.items():
        texts.append(GeneratedText(prompt, tuple(written.items())))
        for name, text in written.items():
            row: tuple[Cell, ...] = (prompt, name, text)
            rows.append(row)
    return Figure(
        key="texts",
        title="Generated text",
        caption=(
            "What each model writes after the same prompts, the likeliest token at each step. "
            "Questions with given answers can hide damage that is plain to see here."
        ),
        badges=(),
        panels=(),
        table=NumberTable(("prompt", "model", "text"), tuple(rows)),
        texts=tuple(texts),
    )


register(
    FigureEntry(
        name="texts",
        title="Generated text",
        order=110,
        figure=figure,
        absent="No text was generated: the option --score does it.",
    )
)
