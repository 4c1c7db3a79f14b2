"""Optuna's NSGA-II, over the same binary parameters as the other algorithms."""

from prunesearch.algorithms.registry import OPTUNA, AlgorithmEntry, OptunaClass, register

register(
    AlgorithmEntry(
        "nsga2",
        "Optuna's NSGA-II",
        order=41,
        sampler=OPTUNA,
        optuna=OptunaClass("optuna.samplers:NSGAIISampler", population_argument="population_size"),
        takes_ranking=False,
        resumable=False,
    )
)
