"""Optuna's CMA-ES, over the same binary parameters as the other algorithms."""

from prunesearch.algorithms.registry import OPTUNA, AlgorithmEntry, OptunaClass, register

register(
    AlgorithmEntry(
        "cmaes",
        "Optuna's CMA-ES",
        order=42,
        sampler=OPTUNA,
        optuna=OptunaClass(
            "optuna.samplers:CmaEsSampler", population_argument="popsize", least_population=4
        ),
        several_objectives=False,
        takes_ranking=False,
        resumable=False,
    )
)
