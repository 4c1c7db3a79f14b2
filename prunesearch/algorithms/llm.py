"""The entry of the search that a language model guides (see `samplers.llm`)."""

from prunesearch.algorithms.registry import AlgorithmEntry, register

register(
    AlgorithmEntry(
        "llm",
        "a language model proposes, selects, crosses and mutates",
        order=25,
        sampler="prunesearch.samplers.llm.sampler:build_llm",
        several_objectives=False,
        ranking="influence",
        needs_llm=True,
        origins=("elite",),
    )
)
