"""Inference time by number of dropped blocks, in turns with the dense model.

All blocks of the models here are equal, so the time depends on the number alone. The paper timed one
run each; here each model is timed several times, and the mean has its standard error.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from benchmarks.paper_parts.comparison import Spread
from benchmarks.paper_parts.experiment import Experiment
from benchmarks.support.speed import time_candidates
from prunesearch.cache.files import replaced_file
from prunesearch.candidate import LayerSubset
from prunesearch.execution.latency import machine
from prunesearch.pipeline.session import Session


@dataclass(frozen=True)
class Times:
    """Times of a model.

    Attributes:
        prefill_ms: milliseconds of a prefill.
        decode_ms: milliseconds of a decoded token.
    """

    prefill_ms: Spread
    decode_ms: Spread


def measure_times(session: Session, experiment: Experiment) -> dict[int, Times]:
    """Time the dense model, 0, and the model without the last k blocks, for each k.

    Times of the same model on the same machine that were measured before are read. One process
    measures, and others wait for it.
    """
    path = experiment.folder / f"times-{_digest(session, experiment)}.json"
    with FileLock(f"{path}.lock"):
        return _measured(session, experiment, path)


def _digest(session: Session, experiment: Experiment) -> str:
    """Return the digest of what times depend on."""
    loaded = session.loaded
    facts = [loaded.fingerprint, machine(loaded.model), experiment.window, experiment.turns]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _measured(session: Session, experiment: Experiment, path: Path) -> dict[int, Times]:
    """Read times from a file, or measure them."""
    if path.exists():
        stored = json.loads(path.read_text())
        known = {int(k): _read(times) for k, times in stored.items()}
        if {0, *experiment.ks} <= known.keys():
            return known
    n_layers = session.loaded.n_layers
    candidates = {"0": LayerSubset.of(n_layers)}
    for k in experiment.ks:
        # The last block is kept: some models treat it differently.
        candidates[str(k)] = LayerSubset.parse(f"{n_layers - 1 - k}-{n_layers - 2}", n_layers)
    found = {}
    timed = time_candidates(session.loaded.model, candidates, experiment.window, experiment.turns)
    for name, turns in timed.items():
        prefill = Spread.of([each.prefill_ms for each in turns])
        found[int(name)] = Times(prefill, Spread.of([each.decode_ms for each in turns]))
    with replaced_file(path) as scratch:
        scratch.write_text(json.dumps({k: asdict(times) for k, times in found.items()}) + "\n")
    return found


def _read(stored: dict[str, dict[str, float]]) -> Times:
    """Read the times of a model."""
    return Times(Spread(**stored["prefill_ms"]), Spread(**stored["decode_ms"]))
