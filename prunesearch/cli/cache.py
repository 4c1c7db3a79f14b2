"""The commands `cache …` on the evaluation cache. They start without torch."""

import sys
import time
from pathlib import Path

import click

from prunesearch.cli.help import Group
from prunesearch.cli.options.places import CACHE, JSON, STORAGE
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
    from prunesearch.cache.location import CacheLocation
    from prunesearch.report import cache as render
    from prunesearch.studies import cache_use

    statistics = cache_use.statistics(CacheLocation.parse(cache), storage)
    emit(as_json, statistics, render.stats)


@cache.command()
@CACHE
@JSON
def verify(cache: str, as_json: bool) -> None:
    """Check every entry. Damaged ones are taken out; exit status 1 says that there were any."""
    from prunesearch.cache import maintenance
    from prunesearch.cache.location import CacheLocation
    from prunesearch.report import cache as render

    found = maintenance.verified(CacheLocation.parse(cache))
    emit(as_json, found, render.verified)
    if not found.sound:
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
    emit(as_json, transfer.ExportedFile(file, count), render.exported)


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
    emit(as_json, done, render.imported)


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
    emit(as_json, maintenance.sweep(CacheLocation.parse(cache), before), render.swept)


@cache.command()
@CACHE
@JSON
def path(cache: str, as_json: bool) -> None:
    """Print where the cache is."""
    from prunesearch.cache.location import CacheLocation
    from prunesearch.report import cache as render

    emit(as_json, CacheLocation.parse(cache).shown(), render.path)
