"""The commands `cache …` on the evaluation cache. They start without torch."""

import sys
import time
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from prunesearch.cli.help import Group
from prunesearch.cli.options import CACHE, JSON, STORAGE
from prunesearch.report.emit import emit
from prunesearch.units import parse_duration


@click.group(cls=Group)
def cache() -> None:
    """Show, check, share and clean up the evaluation cache."""


@cache.command()
@CACHE
@STORAGE
@JSON
def stats(cache: str, storage: str, as_json: bool) -> None:
    """Count entries by model and objective, and what they saved each study."""
    from prunesearch.cache import maintenance
    from prunesearch.cache.location import CacheLocation
    from prunesearch.report import cache as render
    from prunesearch.studies import cache_use

    # 1. Read the studies and the backends of the cache. The shared backend comes first, if there is
    # one.
    location = CacheLocation.parse(cache)
    studies = cache_use.studies_of(storage)
    incidents: Counter[str] = Counter(damage=0, disagreement=0)
    with maintenance.reading(location) as backends:
        groups = backends[0].groups()
        for backend in backends:
            for incident in backend.read_incidents():
                incidents[incident.kind] += 1
    # 2. Count entries by model and objective.
    rows = []
    for group in groups:
        rows.append(
            {
                "model": studies.models.get(group.model)
                or maintenance.named(location.folder, group.model),
                "fingerprint": group.model,
                "objective": group.kind,
                "entries": group.entries,
                "bytes": group.bytes,
            }
        )
    entries, size = maintenance.total(groups)
    # 3. Print everything.
    document = {
        "place": str(location),
        "entries": entries,
        "bytes": size,
        "groups": rows,
        "studies": [asdict(use) | {"hit_rate": round(use.hit_rate, 4)} for use in studies.uses],
        "alarms": {kind: incidents[kind] for kind in ("damage", "disagreement")},
        "unsent": maintenance.unsent(location),
    }
    emit(as_json, document, render.stats)


@cache.command()
@CACHE
@JSON
def verify(cache: str, as_json: bool) -> None:
    """Check every entry. Damaged ones are taken out; exit status 1 says that there were any."""
    from prunesearch.cache import maintenance
    from prunesearch.cache.location import CacheLocation
    from prunesearch.report import cache as render

    document = maintenance.verified(CacheLocation.parse(cache))
    for incident in document["alarms"]:
        incident["at"] = _when(incident["at"])
    emit(as_json, document, render.verified)
    if any(backend["damaged"] or backend["file"] for backend in document["tiers"]):
        sys.exit(1)


@cache.command("export")
@click.argument("file")
@CACHE
@JSON
def export_(file: str, cache: str, as_json: bool) -> None:
    """Write all entries to FILE as checksummed JSON lines; FILE.gz is compressed."""
    from prunesearch.cache import maintenance, transfer
    from prunesearch.cache.location import CacheLocation
    from prunesearch.report import cache as render

    with maintenance.reading(CacheLocation.parse(cache)) as backends:
        count = transfer.export(backends, Path(file))
    emit(as_json, {"file": file, "entries": count}, render.exported)


@cache.command("import")
@click.argument("files", nargs=-1, required=True)
@CACHE
@JSON
def import_(files: tuple[str, ...], cache: str, as_json: bool) -> None:
    """Add the entries of exported FILES. Every line is checked before anything is written."""
    from prunesearch.cache import maintenance
    from prunesearch.cache.location import CacheLocation
    from prunesearch.report import cache as render

    done = maintenance.merge(CacheLocation.parse(cache), [Path(file) for file in files])
    emit(as_json, asdict(done), render.imported)


@cache.command()
@click.option("--older-than", required=True, help="Remove what was stored longer ago: 90d, 12h.")
@CACHE
@JSON
def gc(older_than: str, cache: str, as_json: bool) -> None:
    """Remove old entries, leases that have run out, and damaged files that were set aside."""
    from prunesearch.cache import maintenance
    from prunesearch.cache.location import CacheLocation
    from prunesearch.report import cache as render

    # No entry is older than 1970.
    before = max(0.0, time.time() - parse_duration(older_than, "--older-than"))
    document: dict[str, Any] = maintenance.sweep(CacheLocation.parse(cache), before)
    emit(as_json, {**document, "before": _when(before)}, render.swept)


@cache.command()
@CACHE
@JSON
def path(cache: str, as_json: bool) -> None:
    """Print where the cache is."""
    from prunesearch.cache.location import CacheLocation, shown
    from prunesearch.report import cache as render

    location = CacheLocation.parse(cache)
    url = None if location.url is None else shown(location.url)
    emit(as_json, {"folder": str(location.folder.absolute()), "url": url}, render.path)


def _when(at: float) -> str:
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):  # the time is from a file that was edited by hand
        return f"{at:g}"
