"""The commands `cache …` on the evaluation cache, and `doctor`.

They do not import torch when they start.
"""

import sys
import time
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from prunesearch.cli_help import Command, Group
from prunesearch.cli_options import CACHE, JSON, STORAGE
from prunesearch.quantity import parse_duration
from prunesearch.report.emit import emit


@click.group(cls=Group)
def cache() -> None:
    """Show, check, share and clean up the evaluation cache."""


@cache.command()
@CACHE
@STORAGE
@JSON
def stats(cache: str, storage: str, as_json: bool) -> None:
    """Count entries by model and objective, and what they saved each study."""
    from prunesearch.report import store as render
    from prunesearch.store import census
    from prunesearch.store.places import Places

    # 1. Read the studies and the tiers of the cache. The shared tier comes first, if there is one.
    places = Places.parse(cache)
    studies = census.studies_of(storage)
    alarms: Counter[str] = Counter(damage=0, disagreement=0)
    with census.reading(places) as tiers:
        groups = tiers[0].groups()
        for tier in tiers:
            for alarm in tier.read_alarms():
                alarms[alarm.kind] += 1
    # 2. Count entries by model and objective.
    rows = []
    for group in groups:
        rows.append(
            {
                "model": studies.models.get(group.model) or census.named(places.folder, group.model),
                "fingerprint": group.model,
                "objective": group.kind,
                "entries": group.entries,
                "bytes": group.bytes,
            }
        )
    entries, size = census.total(groups)
    # 3. Print everything.
    document = {
        "place": str(places),
        "entries": entries,
        "bytes": size,
        "groups": rows,
        "studies": [asdict(use) | {"hit_rate": round(use.hit_rate, 4)} for use in studies.uses],
        "alarms": {kind: alarms[kind] for kind in ("damage", "disagreement")},
        "unsent": census.unsent(places),
    }
    emit(as_json, document, render.stats)


@cache.command()
@CACHE
@JSON
def verify(cache: str, as_json: bool) -> None:
    """Check every entry. Damaged ones are taken out; exit status 1 says that there were any."""
    from prunesearch.report import store as render
    from prunesearch.store import census
    from prunesearch.store.places import Places

    document = census.verified(Places.parse(cache))
    for alarm in document["alarms"]:
        alarm["at"] = _when(alarm["at"])
    emit(as_json, document, render.verified)
    if any(tier["damaged"] or tier["file"] for tier in document["tiers"]):
        sys.exit(1)


@cache.command("export")
@click.argument("file")
@CACHE
@JSON
def export_(file: str, cache: str, as_json: bool) -> None:
    """Write all entries to FILE as checksummed JSON lines; FILE.gz is compressed."""
    from prunesearch.report import store as render
    from prunesearch.store import census, exchange
    from prunesearch.store.places import Places

    with census.reading(Places.parse(cache)) as tiers:
        count = exchange.export(tiers, Path(file))
    emit(as_json, {"file": file, "entries": count}, render.exported)


@cache.command("import")
@click.argument("files", nargs=-1, required=True)
@CACHE
@JSON
def import_(files: tuple[str, ...], cache: str, as_json: bool) -> None:
    """Add the entries of exported FILES. Every line is checked before anything is written."""
    from prunesearch.report import store as render
    from prunesearch.store import census
    from prunesearch.store.places import Places

    done = census.merge(Places.parse(cache), [Path(file) for file in files])
    emit(as_json, asdict(done), render.imported)


@cache.command()
@click.option("--older-than", required=True, help="Remove what was stored longer ago: 90d, 12h.")
@CACHE
@JSON
def gc(older_than: str, cache: str, as_json: bool) -> None:
    """Remove old entries, leases that have run out, and damaged files that were set aside."""
    from prunesearch.report import store as render
    from prunesearch.store import census
    from prunesearch.store.places import Places

    # No entry is older than 1970.
    before = max(0.0, time.time() - parse_duration(older_than, "--older-than"))
    document: dict[str, Any] = census.sweep(Places.parse(cache), before)
    emit(as_json, {**document, "before": _when(before)}, render.swept)


@cache.command()
@CACHE
@JSON
def path(cache: str, as_json: bool) -> None:
    """Print where the cache is."""
    from prunesearch.report import store as render
    from prunesearch.store.places import Places, shown

    places = Places.parse(cache)
    url = None if places.url is None else shown(places.url)
    emit(as_json, {"folder": str(places.folder.absolute()), "url": url}, render.path)


@click.command(cls=Command)
@CACHE
@STORAGE
@JSON
def doctor(cache: str, storage: str, as_json: bool) -> None:
    """Check this machine, the cache and the studies; say what to fix. Exit status 1: something is broken."""
    from prunesearch.doctor import examine
    from prunesearch.report import store as render

    checks = examine(cache, storage)
    emit(as_json, {"checks": [asdict(check) for check in checks]}, render.doctor)
    if any(check.status == "broken" for check in checks):
        sys.exit(1)


def _when(at: float) -> str:
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):  # the time is from a file that was edited by hand
        return f"{at:g}"
