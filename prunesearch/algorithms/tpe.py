"""Optuna's tree-structured Parzen estimator, over the binary parameters of all algorithms."""

from types import MappingProxyType

from prunesearch.algorithms.registry import OPTUNA, AlgorithmEntry, OptunaClass, register

register(
    AlgorithmEntry(
        "tpe",
        "Optuna's tree-structured Parzen estimator",
        order=40,
        sampler=OPTUNA,
        optuna=OptunaClass(
            "optuna.samplers:TPESampler",
            options=MappingProxyType({"multivariate": True}),
            ordinary_parameters=True,
        ),
        takes_ranking=False,
        resumable=False,
    )
)
