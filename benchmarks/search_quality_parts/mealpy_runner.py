"""mealpy's own optimizers, in an environment of their own, because they need an older numpy."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.search_quality_parts.problem import Problem, Runner, Trace, Watch

MEALPY = "mealpy==3.0.3"
_CHILD = Path(__file__).parents[1] / "support" / "mealpy_child.py"


def mealpy(law: str, python: Path) -> Runner:
    """Return the runner of mealpy's optimizer on random keys."""

    def run(problem: Problem, seed: int, budget: int) -> Trace:
        words = [law, problem.space.n_layers, problem.space.k, 16, seed]
        with subprocess.Popen(
            [python, _CHILD, *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdin is not None and process.stdout is not None
            watch = Watch(problem)
            for line in process.stdout:
                value = watch.evaluate(tuple(json.loads(line)))
                answer = "\n" if watch.over(budget) else f"{value!r}\n"
                process.stdin.write(answer)
                process.stdin.flush()
        return watch.trace

    return run


@contextmanager
def mealpy_environment(wanted: bool) -> Iterator[Path | None]:
    """Open a virtual environment with mealpy, for as long as it is needed.

    The interpreter is None where mealpy cannot be installed.
    """
    if not wanted:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = Path(folder) / "bin" / "python"
        done = subprocess.run(
            [python, "-m", "pip", "install", "-q", MEALPY],
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            print(f"{MEALPY} cannot be installed here: left out", file=sys.stderr)
        yield python if done.returncode == 0 else None
