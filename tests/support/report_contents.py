"""A report with every kind of figure, written without studies. Names hold markup."""

import math

from prunesearch.report.figures.figure import (
    HELD_OUT,
    SEARCHED_ON,
    Figure,
    GeneratedText,
    Heatmap,
    NumberTable,
    Panel,
    Rule,
    Series,
)
from prunesearch.report.figures.styles import DENSE, NEUTRAL, numbered, style_of
from prunesearch.report.figures.thinning import thinned
from prunesearch.report.page.contents import ReportContents, Sentence, StudyFacts, StudyRecipe

HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script> $x$ `b` |c| *d* @e"
LAYERS = [str(layer) for layer in range(80)]


def _lines() -> Figure:
    """Lines with bands, faint, strong and ordinary points, and a straight line."""
    x = list(range(1, 3001))
    noisy = [1.0 + math.sin(value) / 3 + 200 / (value + 100) for value in x]
    series: list[Series] = [
        thinned(Series("all candidates", x, noisy, "points", style=NEUTRAL, emphasis="faint"))
    ]
    for number, name in enumerate(("pso", "woa", "random")):
        y = [0.5 + number / 4 + 200 / (value + 100) for value in x[::100]]
        low, high = [value - 0.05 for value in y], [value + 0.05 for value in y]
        series.append(Series(name, x[::100], y, "step", low=low, high=high, style=style_of(name)))
    labels = [HOSTILE]
    series.append(
        Series("worst", [1], [max(noisy)], "points", style=3, labels=labels, emphasis="strong")
    )
    rules = (Rule(0.4, "dense model", style=DENSE),)
    left = Panel(
        "125 of 500 layers", "evaluations", "KL to the dense model (nats per token)",
        tuple(series), rules,
    )  # fmt: skip
    right = Panel(
        HOSTILE, "latency (ms)", "perplexity", (Series(HOSTILE, [1, 10, 100], [2, 30, 400]),),
        log_x=True, log_y=True,
    )  # fmt: skip
    rows = tuple((value, noisy[value - 1], SEARCHED_ON, HOSTILE) for value in x)
    head = ("evaluation", "KL (nats per token)", "badge", "study")
    return Figure(
        "lines", f"Lines and points {HOSTILE}", f"What is seen {HOSTILE}.", (SEARCHED_ON,),
        (left, right), NumberTable(head, rows), columns=2,
    )  # fmt: skip


def _bars() -> Figure:
    """Bars beside each other and on each other, with errors."""
    beside = []
    for number, name in enumerate(("best tenth", "all", "worst tenth")):
        y = [(layer * (number + 3) % 11) / 11 for layer in range(80)]
        high = [value + 0.05 for value in y]
        beside.append(Series(name, LAYERS, y, "bars", low=y, high=high, style=numbered(number)))
    names = ["particle swarm", "whale optimization", "evolution", "greedy", "one-shot influence"]
    stacked = []
    for number, name in enumerate(("hits", "computed")):
        stacked.append(Series(name, names, [3.0 + number] * 5, "bars", style=numbered(number)))
    panels = (
        Panel("", "layer", "share of candidates", tuple(beside)),
        Panel("", "algorithm", "evaluations", tuple(stacked), bars="stacked"),
    )
    return Figure("bars", "Bars", "How often each layer is dropped.", (HELD_OUT,), panels)


def _heat() -> Figure:
    """Heat maps of shares and of differences."""
    z = [[math.sin(row * column / 50) for column in range(80)] for row in range(80)]
    z[3][4] = math.nan
    pairs = Heatmap(LAYERS, LAYERS, z, "interaction (nats per token)", diverging=True)
    few = Heatmap(["pso", "woa"], ["pso", "woa"], [[1.0, 0.4], [0.4, 1.0]], "Jaccard index")
    panels = Panel("", "layer", "layer", (pairs,)), Panel("", "algorithm", "algorithm", (few,))
    return Figure("heat", "Pairs of layers", "Blue helps.", BOTH, panels, columns=2)


BOTH = (SEARCHED_ON, HELD_OUT)


def _text() -> Figure:
    sample = GeneratedText(HOSTILE, (("dense", HOSTILE), ("pruned", "line\n" * 3)))
    table = NumberTable(("model", "accuracy"), (("dense", 0.5), ("pruned", None)))
    return Figure(
        "text", "Generated text", "The same prompts.", (HELD_OUT,), (), table, (sample,), True
    )


def contents() -> ReportContents:
    """A report with every kind of figure."""
    return ReportContents(
        title=f"Report of {HOSTILE}",
        made="2026-11-27 03:00 UTC",
        command="prunesearch report a b --out report",
        summary=(Sentence(f"The best is {HOSTILE}.", SEARCHED_ON), Sentence("A second sentence.")),
        notes=("Study a is half finished: 3 of 10 trials.",),
        studies=NumberTable(
            ("study", "sampler", "best KL (nats per token)", "data"),
            ((HOSTILE, "pso", 0.1234567, SEARCHED_ON), ("=1+1", "woa", None, HELD_OUT)),
        ),
        facts=(StudyFacts(HOSTILE, (("model", HOSTILE), ("layers", "1,2,3," * 60))),),
        recipes=(StudyRecipe("a", "search:\n  drop: 25%\n", "prunesearch run recipe.yaml"),),
        figures=(_lines(), _bars(), _heat(), _text()),
        absent=(("Lineage", "No sampler names parents."),),
    )
