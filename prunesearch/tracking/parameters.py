"""Parameters of a run: nested settings as names and plain values."""

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from prunesearch.cache.keys import canonical_json
from prunesearch.events import Scalar
from prunesearch.runtime.json_values import Json
from prunesearch.runtime.version import __version__

_PACKAGES = ("torch", "transformers", "optuna", "numpy", "peft", "lm_eval")


def flat(values: Mapping[str, Json], before: str = "") -> dict[str, Scalar]:
    """Return nested settings by names such as ``search.sampler``. Lists become JSON text.

    Args:
        values: the settings. Those that are None are left out.
        before: what each name begins with.
    """
    found: dict[str, Scalar] = {}
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, Mapping):
            found.update(flat(value, f"{before}{name}."))
        elif isinstance(value, bool | int | float | str):
            found[before + name] = value
        else:
            found[before + name] = canonical_json(value)
    return found


def versions() -> dict[str, Scalar]:
    """Return the versions of what computes the results."""
    found: dict[str, Scalar] = {"version.prunesearch": __version__}
    found["version.python"] = platform.python_version()
    for package in _PACKAGES:
        try:
            found[f"version.{package}"] = version(package)
        except PackageNotFoundError:
            continue
    return found
