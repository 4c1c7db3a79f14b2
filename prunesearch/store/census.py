"""What a cache holds and what it has saved; checking it and thinning it out."""

import contextlib
import json
import math
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from prunesearch.errors import StorageError, one_line
from prunesearch.store import exchange, repair
from prunesearch.store.alarms import Alarm
from prunesearch.store.disk import DiskTier
from prunesearch.store.disk_file import DiskFile
from prunesearch.store.entry import is_digest
from prunesearch.store.files import replaced_file
from prunesearch.store.leases import Leases, Presence, folder_leases
from prunesearch.store.places import Places, check_url, shown, sqlite_file
from prunesearch.store.repair import FILE
from prunesearch.store.sql import SqlTier
from prunesearch.store.tables import connect
from prunesearch.store.tier import Group, Readable, Tier
from prunesearch.store.tiers import UNSENT

NAMES = "names"
"""Folder of a cache in which the names of models lie, a file for each, by their fingerprints."""
_OPTUNA_TABLES = ("studies", "trials", "study_user_attributes", "trial_user_attributes")


@dataclass(frozen=True)
class StudyUse:
    """What the cache did for a study.

    Attributes:
        hits, computed: finished trials that were found in it, and that were scored.
        saved_seconds: what the hits took when they were computed.
        running: trials that are being evaluated, or were when their search was killed.
    """

    study: str
    hits: int
    computed: int
    saved_seconds: float
    running: int

    @property
    def hit_rate(self) -> float:
        """Share of the finished trials that were found."""
        return self.hits / max(1, self.hits + self.computed)


@contextmanager
def reading(places: Places) -> Iterator[list[Readable]]:
    """The tiers of an existing cache, the shared one first.

    Raises:
        StorageError: there is no cache.
    """
    tiers: list[Readable] = []
    if places.url is not None:
        tiers.append(SqlTier(places.url))
    if repair.unsalvaged(places.folder):
        DiskTier(places.folder).close()  # which first copies back what is sound
    if (places.folder / FILE).is_file():
        tiers.append(DiskFile(places.folder))
    if not tiers:
        raise StorageError(f"no cache in {str(places.folder)!r}: run prunesearch search first, or give --cache")
    try:
        yield tiers
    finally:
        for tier in tiers:
            tier.close()


@dataclass(frozen=True)
class Studies:
    """What the study database says about the use of the cache.

    Attributes:
        uses: one per study, by name.
        models: names of models by the fingerprint of their content.
    """

    uses: tuple[StudyUse, ...]
    models: dict[str, str]


def studies_of(url: str) -> Studies:
    """Read a study database, where there is one. Plain SQL on Optuna's tables: they are read in a moment.

    Raises:
        StorageError: it cannot be read.
    """
    check_url(url)
    if (file := sqlite_file(url)) and not file.is_file():
        return Studies((), {})
    try:
        engine = connect(url)
    except (ImportError, SQLAlchemyError) as error:
        raise StorageError(f"cannot read --storage {shown(url)!r}: {one_line(error)}") from None
    try:
        with engine.connect().execution_options(reading=True) as connection:
            if not set(_OPTUNA_TABLES) <= set(sqlalchemy.inspect(connection).get_table_names()):
                return Studies((), {})
            ours = _ours(connection)
            tuned = connection.exec_driver_sql(
                "SELECT s.study_name FROM studies s JOIN study_user_attributes a ON a.study_id = s.study_id "
                "WHERE a.key = 'healing'"
            )
            names = {*ours, *tuned.scalars()}
            return Studies(tuple(_uses(connection, names)), _models(ours))
    except SQLAlchemyError as error:
        reason = one_line(getattr(error, "orig", None) or error)
        raise StorageError(f"cannot read --storage {shown(url)!r}: {reason}") from None
    finally:
        engine.dispose()


def _ours(connection: Connection) -> dict[str, dict[str, Any]]:
    """Identity and recipe of the studies that prunesearch made, by name. Others may keep anything by these words."""
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for study, key, text in connection.exec_driver_sql(
        "SELECT s.study_name, a.key, a.value_json FROM studies s JOIN study_user_attributes a "
        "ON a.study_id = s.study_id WHERE a.key IN ('identity', 'recipe')"
    ):
        fields = _parsed(_parsed(text))
        if isinstance(fields, dict):
            found[study][key] = fields
    return {study: attributes for study, attributes in found.items() if {"identity", "recipe"} <= attributes.keys()}


def _parsed(text: object) -> object:
    """The JSON value of a text; None if it is none."""
    try:
        return json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None


def _uses(connection: Connection, names: set[str]) -> Iterator[StudyUse]:
    joined = "FROM studies s JOIN trials t ON t.study_id = s.study_id"
    running = dict.fromkeys(names, 0)
    for name, count in connection.exec_driver_sql(
        f"SELECT s.study_name, COUNT(*) {joined} WHERE t.state = 'RUNNING' GROUP BY s.study_name"
    ):
        running[name] = count
    attributes = f"{joined} JOIN trial_user_attributes a ON a.trial_id = t.trial_id"
    counts: dict[tuple[str, object], int] = {}
    saved: dict[str, float] = defaultdict(float)
    for name, key, text, count in connection.exec_driver_sql(
        f"SELECT s.study_name, a.key, a.value_json, COUNT(*) {attributes} WHERE a.key IN ('cache', 'saved_seconds') "
        "GROUP BY s.study_name, a.key, a.value_json"
    ):
        value = _parsed(text)
        if key == "cache" and isinstance(value, str):
            counts[name, value] = count
        elif key == "saved_seconds" and isinstance(value, int | float) and math.isfinite(value):
            saved[name] += value * count
    for name in sorted(names):
        hits, computed = counts.get((name, "hit"), 0), counts.get((name, "computed"), 0)
        yield StudyUse(name, hits, computed, saved[name], running[name])


def _models(ours: dict[str, dict[str, Any]]) -> dict[str, str]:
    found = {}
    for attributes in ours.values():
        digest, name = attributes["identity"].get("model content"), attributes["recipe"].get("model")
        if digest:
            found[str(digest)] = Path(str(name)).name
    return found


def remember_name(folder: Path, fingerprint: str, name: str) -> None:
    """Keep the name of a model that no study names, for `named`. It is for people: where it cannot be kept, none is.

    Args:
        folder: of the cache.
    """
    path = folder / NAMES / fingerprint
    if path.exists():
        return
    with suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        with replaced_file(path) as new:
            new.write_text(Path(name).name, encoding="utf-8", errors="surrogateescape")


def named(folder: Path, fingerprint: str) -> str:
    """A model's name, or the beginning of its fingerprint where none is known."""
    name = ""
    if is_digest(fingerprint):
        with suppress(OSError):
            name = (folder / NAMES / fingerprint).read_text(encoding="utf-8", errors="replace")[:100].strip()
    return name if name.isprintable() and name else fingerprint[:12]


def total(groups: list[Group]) -> tuple[int, int]:
    """Entries and bytes in all."""
    return sum(group.entries for group in groups), sum(group.bytes for group in groups)


def unsent(places: Places) -> int:
    """Entries that wait on this machine for the shared cache."""
    folder = places.folder / UNSENT
    return len(DiskFile(folder)) if (folder / FILE).is_file() else 0


def verified(places: Places) -> dict[str, Any]:
    """Check every entry of every tier, and take damaged ones out.

    Returns:
        Per tier what is sound, what was damaged and what the database says of its file; and all alarms so far.
    """
    with reading(places):
        pass  # there is a cache to check
    tiers = []
    alarms: list[Alarm] = []
    with writing(places) as opened, contextlib.ExitStack() as closing:
        if (places.folder / UNSENT / FILE).is_file():
            opened.append(closing.enter_context(contextlib.closing(DiskTier(places.folder / UNSENT))))
        for tier in opened:
            faults = tier.check()
            if faults and isinstance(tier, DiskTier):
                tier.rebuild()
            damaged = _damaged(tier)
            tier.take_out(damaged)
            if damaged and isinstance(tier, DiskTier) and _damaged(tier):  # rows without a key that could be named
                tier.rebuild()
            tiers.append({"place": tier.name, "sound": len(tier), "damaged": len(damaged), "file": faults})
            alarms += tier.read_alarms()
    return {"tiers": tiers, "alarms": [asdict(alarm) for alarm in alarms]}


def _damaged(tier: Tier) -> list[str]:
    return [digest for digest, entry in tier.scan() if entry is None]


@contextmanager
def writing(places: Places) -> Iterator[list[Tier]]:
    """All tiers of a cache, open for writing, the shared one first."""
    tiers: list[Tier] = []
    try:
        if places.url is not None:
            tiers.append(SqlTier(places.url))
        tiers.append(DiskTier(places.folder))
        yield tiers
    finally:
        for tier in tiers:
            tier.close()


def merge(places: Places, paths: Sequence[Path]) -> exchange.Imported:
    """Add exported files to a cache, which is made if it is not there; first every file is checked to its end.

    Raises:
        InputError: a file is not sound; nothing was written.
    """
    exchange.check(paths)
    with writing(places) as tiers:
        return exchange.add(paths, tiers)


def sweep(places: Places, before: float) -> dict[str, Any]:
    """Remove what was stored before a time (seconds since 1970), and what dead processes left.

    Returns:
        How many entries (of the shared cache, where there is one), leases, owners and quarantined files are gone.
    """
    with reading(places):
        pass  # there is a cache to thin out
    counts, leases = [], 0
    with writing(places) as tiers:
        for tier in tiers:
            old = tier.older_than(before)
            tier.discard(old)
            counts.append(len(old))
            if isinstance(tier, SqlTier):
                leases += Leases(tier.engine, tier.name).sweep()
    local = folder_leases(places.folder)
    leases += local.sweep()
    presence = Presence(places.folder)
    dead = presence.dead()
    for owner in dead:
        local.release(owner)
        presence.bury(owner)
    presence.leave()
    local.engine.dispose()
    return {
        "entries": counts[0],
        "leases": leases,
        "owners": len(dead),
        "quarantined": sum(_sweep_quarantine(folder, before) for folder in (places.folder, places.folder / UNSENT)),
    }


def _sweep_quarantine(folder: Path, before: float) -> int:
    """Delete damaged files that were set aside before a time, if all that is sound in them is in the cache."""
    waiting = set(repair.unsalvaged(folder))
    count = 0
    for place in repair.quarantined(folder):
        with contextlib.suppress(FileNotFoundError):  # another process is sweeping too
            if place not in waiting and place.stat().st_mtime < before:
                shutil.rmtree(place)
                count += 1
    return count
