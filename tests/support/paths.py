"""Folders and files outside the package that tests and benchmarks use."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
SHARED = REPOSITORY.parent / "shared"
HELLASWAG = SHARED / "data" / "hellaswag_val_a.jsonl.bz2"
LANDSCAPE = SHARED / "landscapes" / "smollm2-135m_k3_kl.json"
SYNTHETIC = SHARED / "landscapes" / "synthetic.py"
