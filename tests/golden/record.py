"""Write the golden files again: ``python -m tests.golden.record``."""

import os
import shutil
import tempfile
from pathlib import Path

import optuna

from prunesearch.cache import maintenance
from prunesearch.cache.location import CacheLocation
from prunesearch.cache.transfer import export
from prunesearch.cli.output import quiet
from tests.golden import results, studies

HERE = Path(__file__).parent
FILES = HERE / "files"


def main() -> None:
    """Record everything in the folder ``files``."""
    results.offline()
    quiet()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    FILES.mkdir(exist_ok=True)
    dumps = {
        name: studies.dump(studies.run_case(case, None)) for name, case in studies.CASES.items()
    }
    (FILES / "studies.json").write_text(results.canonical(dumps))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        studies.run_case(
            studies.CASES["pso"], studies.database(folder, "pso"), trials=studies.TRIALS // 2
        )
        shutil.copyfile(folder / "pso.db", FILES / "study.db")
        results.fill_cache(folder / "cache")
        shutil.copyfile(folder / "cache" / "cache.db", FILES / "cache.db")
        with maintenance.reading(CacheLocation.parse(str(folder / "cache"))) as backends:
            export(backends, FILES / "evaluations.jsonl")
        prose, rows = results.write_data(folder)
        results.write_model(folder / "model")
        (FILES / "keys.json").write_text(
            results.canonical(results.keys(folder / "model", prose, rows))
        )
        (FILES / "documents.json").write_text(
            results.canonical(results.documents(folder / "model", prose, rows))
        )


if __name__ == "__main__":
    main()
