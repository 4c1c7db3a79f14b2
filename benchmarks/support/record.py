"""What every benchmark writes: figures with targets and provenance, as a table and as one JSON
document.
"""

import argparse
import importlib.metadata
import json
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from prunesearch.models.bf16_cpu import widens

_PACKAGES = ("prunesearch", "torch", "transformers", "optuna", "lm-eval", "diskcache", "numpy")
_COMPARE = {"<=": float.__le__, ">=": float.__ge__, "==": float.__eq__}
Size = Literal["full", "quick", "smoke"]
"""How much a benchmark measures: all of it, the same figures within five minutes, or just enough
to show within seconds that the benchmark still runs.
"""
T = TypeVar("T")


@dataclass
class Record:
    """Collects a benchmark's figures.

    Attributes:
        figures: number by name.
        targets: bound by figure name, such as ``<= 0.01``.
        notes: anything else worth keeping, as JSON values.
    """

    benchmark: str
    size: Size = "full"
    figures: dict[str, float] = field(default_factory=dict)
    targets: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    commit: str = field(
        default_factory=lambda: _commit()
    )  # of the code that runs, not of what it has become since

    @property
    def quick(self) -> bool:
        """Whether less was measured than in a full run."""
        return self.size != "full"

    @property
    def threads(self) -> int:
        """Threads of a run; on tiny models a second one is waited for longer than it computes."""
        return self.by_size(2, 2, 1)

    def by_size(self, full: T, quick: T, smoke: T) -> T:
        """The value that belongs to this run's size."""
        return {"full": full, "quick": quick, "smoke": smoke}[self.size]

    def add(self, name: str, value: float, bound: str | None = None) -> None:
        """Record a figure and, where the issue names one, its target."""
        self.figures[name] = value
        if bound is not None:
            self.targets[name] = bound

    def met(self, name: str) -> bool:
        """Whether a figure keeps its bound."""
        sign, _, limit = self.targets[name].partition(" ")
        return bool(_COMPARE[sign](float(self.figures[name]), float(limit)))

    def document(self) -> dict[str, Any]:
        """The benchmark's JSON document."""
        return {
            "benchmark": self.benchmark,
            "command": shlex.join(
                ["python", "-m", f"benchmarks.{self.benchmark}", *_public(sys.argv[1:])]
            ),
            "commit": self.commit,
            "versions": {name: _version(name) for name in _PACKAGES},
            "machine": {
                "cpu": _cpu(),
                "gpu": _gpu(),
                "threads": torch.get_num_threads(),
                "python": platform.python_version(),
            },
            "quick": self.quick,
            "size": self.size,
            "figures": self.figures,
            "targets": {
                name: {"bound": bound, "met": self.met(name)}
                for name, bound in self.targets.items()
            },
            "notes": self.notes,
        }

    def finish(self, path: Path | None) -> None:
        """Print the table and write the document."""
        width = max(map(len, self.figures))
        for name, value in self.figures.items():
            verdict = (
                f"  target {self.targets[name]}: {'met' if self.met(name) else 'MISSED'}"
                if name in self.targets
                else ""
            )
            print(f"{name:<{width}}  {value:>12.4f}{verdict}")
        if path is not None:
            path.write_text(json.dumps(self.document(), indent=2) + "\n")


def arguments(
    description: str, extra: Mapping[str, dict[str, Any]] | None = None
) -> argparse.Namespace:
    """Parse ``--quick``, ``--json FILE`` and a benchmark's own options."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="the same figures on less, within five minutes"
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="the same code on tiny generated models and data, within seconds: its figures say nothing",
    )
    parser.add_argument("--json", type=Path, help="write the document here")
    for name, options in (extra or {}).items():
        parser.add_argument(name, **options)
    parsed = parser.parse_args()
    parsed.size = "smoke" if parsed.smoke else "quick" if parsed.quick else "full"
    return parsed


def precision() -> Literal["auto", "float32"]:
    """The precision to measure in: as stored, or float32 where a CPU measures that has no
    instructions for less.
    """
    return "float32" if widens() and not torch.cuda.is_available() else "auto"


def _public(words: list[str]) -> list[str]:
    """Command-line words without the folders of this machine."""
    return [Path(word).name if "/" in word else word for word in words]


def _version(name: str) -> str:
    """The version of a package; a checkout that only runs here has none of its own."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    if shutil.which("git") is None:
        return "unknown"
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    dirty = subprocess.run(
        ["git", "status", "--porcelain", "prunesearch"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return (done.stdout.strip() or "unknown") + ("+changes" if dirty else "")


def _gpu() -> str:
    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else "none"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        "unknown",
    )
