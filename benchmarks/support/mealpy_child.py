"""Runs mealpy's PSO or WOA in an environment of its own (it needs an older numpy) and asks for
losses over a pipe.

Not to be called by hand: `benchmarks.search_quality` starts it. One JSON line a question, one
number a line in answer; an empty answer ends the run.
"""

import contextlib
import json
import sys

import numpy as np
from mealpy import PSO, WOA, FloatVar  # type: ignore[import-not-found]


class _DoneError(Exception):
    """The budget is spent."""


def main() -> None:
    """Optimise random keys, of which the k largest are dropped."""
    law, n, k, population, seed = sys.argv[1], *map(int, sys.argv[2:])

    def loss(keys: np.ndarray) -> float:
        print(json.dumps(sorted(np.argsort(-keys, kind="stable")[:k].tolist())), flush=True)
        answer = sys.stdin.readline().strip()
        if not answer:
            raise _DoneError
        return float(answer)

    model = {"pso": PSO.OriginalPSO, "woa": WOA.OriginalWOA}[law](epoch=10_000, pop_size=population)
    problem = {
        "obj_func": loss,
        "bounds": FloatVar(lb=(0.0,) * n, ub=(1.0,) * n),
        "minmax": "min",
        "log_to": None,
    }
    with contextlib.suppress(_DoneError):
        model.solve(problem, seed=seed)


if __name__ == "__main__":
    main()
