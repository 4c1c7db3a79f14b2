"""The algorithms of a comparison: the product's samplers, and variants of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from benchmarks.search_quality_parts.mealpy_runner import mealpy
from benchmarks.search_quality_parts.problem import Problem, Runner, Trace, Watch
from prunesearch.algorithms.registry import REGISTRY, VECTOR_ENCODINGS, AlgorithmEntry, names_with
from prunesearch.algorithms.vector_swarms import VectorSwarm
from prunesearch.errors import UnknownNameError
from prunesearch.samplers import (
    GenerationPendingError,
    Proposal,
    SubsetSampler,
    SwarmSampler,
    build,
    report,
)

# A live search is expensive: these algorithms run there.
LIVE = (
    *names_with("surrogate"), "hill-climbing", "evolution", "greedy", "one-shot", "tpe", "random"
)  # fmt: skip


def run_sampler(problem: Problem, sampler: SubsetSampler, budget: int, spent: int = 0) -> Trace:
    """Drive one of our samplers until it has evaluated `budget` subsets.

    Args:
        problem: what is searched.
        sampler: the sampler.
        budget: unique evaluations.
        spent: evaluations that went into its ranking.
    """
    study = optuna.create_study()
    watch = Watch(problem, spent)
    while not watch.over(budget):
        batch: list[Proposal] = []
        while len(batch) < sampler.batch:
            try:
                batch.append(sampler.ask(study))
            except GenerationPendingError:
                break
        for proposal in batch:
            units = problem.space.units_of(proposal.candidate)
            value = watch.evaluate(units, whole=not proposal.partial_subset)
            if proposal.partial_subset:
                report(study, proposal.number, len(units), value)
                study.tell(proposal.number, state=TrialState.PRUNED)
            else:
                study.tell(proposal.number, value)
    return watch.trace


def ours(name: str, **options: Any) -> Runner:  # noqa: ANN401 (those of `build`)
    """Return the runner of one of the product's samplers."""

    def run(problem: Problem, seed: int, budget: int) -> Trace:
        chosen = dict(options)
        spent = 0
        default = REGISTRY.get(name).ranking
        if problem.influence is not None and default == "influence" and "ranking" not in chosen:
            chosen["ranking"], spent = problem.influence, 1  # as `prunesearch search` does
        return run_sampler(problem, build(name, problem.space, seed=seed, **chosen), budget, spent)

    return run


def ranked(name: str, ranking: str) -> Runner:
    """Return the runner of a sampler that starts from one of the problem's rankings."""

    def run(problem: Problem, seed: int, budget: int) -> Trace:
        sampler = build(name, problem.space, seed=seed, ranking=problem.rankings[ranking])
        return run_sampler(problem, sampler, budget)

    return run


def textbook(entry: AlgorithmEntry, encoding: str) -> Runner:
    """Return a textbook swarm as its paper has it: it may propose a subset again."""

    def run(problem: Problem, seed: int, budget: int) -> Trace:
        assert entry.vector_law is not None
        algorithm = VectorSwarm(entry.vector_law, encoding)
        sampler = SwarmSampler(
            problem.space, algorithm, seed=seed, population=16, preselect=False, novelty=False
        )
        return run_sampler(problem, sampler, budget)

    return run


def able(problem: Problem) -> list[AlgorithmEntry]:
    """Return the product's algorithms that the problem allows."""
    entries = []
    for entry in REGISTRY.entries():
        # `benchmarks.rates` compares the language model. Greedy removal and measured rankings need
        # the losses of partial subsets.
        partial = entry.trials_needed(problem.space, entry.ranking).first > 1
        if not entry.needs_llm and (problem.partial or not partial):
            entries.append(entry)
    return entries


def runners(problem: Problem, python: Path | None, *, live: bool) -> dict[str, Runner]:
    """Return every algorithm that the problem allows, by name.

    Args:
        problem: what is searched.
        python: interpreter of an environment with mealpy, or None.
        live: whether a model is scored.
    """
    chosen: dict[str, Runner] = {}
    for entry in able(problem):
        name = entry.name
        if live and name not in LIVE:
            continue
        chosen[name] = ours(name)
        # The same without its aids.
        if entry.surrogate:
            chosen[f"{name}, no pre-selection"] = ours(name, preselect=False, ranking=None)
            if problem.influence is not None:
                chosen[f"{name}, no ranking"] = ours(name, ranking=None)
        if entry.vector_law is not None and not live:
            for encoding in VECTOR_ENCODINGS:
                chosen[f"{name}-{encoding}, textbook"] = textbook(entry, encoding)
                chosen[f"{name}-{encoding}, novel"] = ours(
                    name, encoding=encoding, preselect=False, ranking=None, population=16
                )
                chosen[f"{name}-{encoding}, pre-selected"] = ours(name, encoding=encoding)
    if problem.partial:
        chosen["pso from single blocks"] = ours("pso", ranking="single")
    if python is not None:
        chosen["mealpy PSO"], chosen["mealpy WOA"] = mealpy("pso", python), mealpy("woa", python)
    return chosen


def on_synthetic(problem: Problem, baselines: dict[str, Runner]) -> dict[str, Runner]:
    """Return the algorithms that are compared on a synthetic landscape, by name.

    They are the product's samplers without a ranking, the same from each of the problem's
    rankings, and the benchmark's own baselines.
    """
    chosen: dict[str, Runner] = {}
    for entry in able(problem):
        chosen[entry.name] = ours(entry.name)
        if entry.surrogate:
            for ranking in problem.rankings:
                chosen[f"{entry.name}, {ranking} ranking"] = ranked(entry.name, ranking)
    return chosen | baselines


def selected(
    algorithms: dict[str, Runner],
    names: str | None,
    known: Callable[[str], bool] = lambda name: False,
) -> dict[str, Runner]:
    """Return the rows that are asked for.

    Args:
        algorithms: all rows.
        names: their names, separated by semicolons; None for all.
        known: whether a name that is not a row may be left out.

    Raises:
        UnknownNameError: a name is none of the rows.
    """
    if names is None:
        return algorithms
    chosen = {}
    for name in map(str.strip, names.split(";")):
        if name in algorithms:
            chosen[name] = algorithms[name]
        elif not known(name):
            raise UnknownNameError("algorithm", name, algorithms)
    return chosen
