"""Candidates in the order of a ranking: the cheapest first; see `Constraints.by_total`.

It uses only the losses of subsets, so it can use the trials of any other search in the study.
"""

from prunesearch.algorithms.registry import ONE_SHOT, SINGLE, AlgorithmEntry, register

register(
    AlgorithmEntry(
        "one-shot",
        "the cheapest units of a ranking, then the next cheapest subsets",
        order=31,
        sampler=ONE_SHOT,
        several_objectives=False,
        ranking=SINGLE,
        needs_ranking=True,
        random=False,
    )
)
