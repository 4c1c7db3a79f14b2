"""Output of the cache commands for people."""

from rich.console import Group

from prunesearch.cache.location import CacheLocation
from prunesearch.cache.maintenance import CacheCheck, Swept
from prunesearch.cache.transfer import ExportedFile, Imported
from prunesearch.report.checks import Checks
from prunesearch.report.tables import Paragraph, Parts, Prose, size, table
from prunesearch.studies.cache_use import CacheStatistics
from prunesearch.units import noun_for, plural


def stats(found: CacheStatistics) -> Parts:
    """Show the entries by model and objective, their use by each study, and incidents."""
    groups = []
    for group in found.groups:
        groups.append((group.model, group.objective, f"{group.entries:,}", size(group.bytes)))
    title = f"{found.place}: {plural(found.entries, 'entry', 'entries')}, {size(found.bytes)}"
    parts: Parts = [table(title, ("model", "objective", "entries", "size"), groups)]
    # The use by each study.
    studies = []
    for study in found.studies:
        rate, saved = f"{study.hit_rate:.1%}", f"{study.saved_seconds:,.0f}"
        studies.append((study.study, study.hits, study.computed, rate, saved))
    if studies:
        parts.append(
            table("Trials", ("study", "hits", "computed", "hit rate", "seconds saved"), studies)
        )
    # Anything that the user may have to look at.
    if found.unsent:
        waiting = plural(found.unsent, "entry waits", "entries wait")
        parts.append(f"{waiting} to be sent to the shared cache")
    incidents = found.incidents
    if incidents.damage or incidents.disagreement:
        parts.append(
            f"incidents: {incidents.damage} damaged, {incidents.disagreement} in disagreement; "
            "see prunesearch cache verify"
        )
    return parts


def verified(found: CacheCheck) -> Parts:
    """Show the result of a check of the cache, one line per backend, and the incidents so far."""
    parts: Parts = []
    for backend in found.backends:
        sound = plural(backend.sound, "entry is sound", "entries are sound")
        line = f"{backend.place}: {sound}, {backend.damaged:,} damaged"
        if backend.damaged:
            they = noun_for(backend.damaged, "it", "they")
            line += f" and taken out: {they} will be computed again"
        parts.append(line)
    for backend in found.backends:
        for line in backend.problems:
            parts.append(f"{backend.place}: {line}")
    if found.incidents:
        rows = []
        for incident in found.incidents:
            rows.append(
                (
                    incident.kind,
                    incident.at,
                    incident.key[:12],
                    Prose(incident.detail[:200]),
                )
            )
        parts.append(table("Incidents so far", ("kind", "when", "entry", "found"), rows))
    return parts


def exported(done: ExportedFile) -> Parts:
    """Show the file that the entries were written to."""
    return [f"exported {plural(done.entries, 'entry', 'entries')} to {done.file}"]


def imported(done: Imported) -> Parts:
    """Show the number of imported entries, and those that contradict the cache."""
    parts: Parts = [f"read {plural(done.read, 'entry', 'entries')}, {done.new:,} of them new"]
    if conflicts := done.conflicts:
        disagree = noun_for(
            conflicts,
            "disagrees with the value for its key",
            "disagree with the value for their key",
        )
        parts.append(
            f"{conflicts} {disagree}; the one that was computed first stays: see prunesearch cache "
            "verify"
        )
    return parts


def swept(done: Swept) -> Parts:
    """Show what was removed from the cache."""
    traces = noun_for(done.owners, "trace of a dead process", "traces of dead processes")
    return [
        f"removed {plural(done.entries, 'entry', 'entries')} stored before {done.before}, "
        f"{done.leases} {noun_for(done.leases, 'lease')} that had run out, "
        f"{done.owners} {traces}, {done.quarantined} {noun_for(done.quarantined, 'damaged file')}"
    ]


def path(location: CacheLocation) -> Parts:
    """Show the locations of the cache, one per line, for scripts."""
    return [str(location.folder), location.url or ""]


def doctor(found: Checks) -> Parts:
    """Show every check, with a remedy for each problem."""
    # Continuation lines are indented to the column of the findings.
    width = max(len(check.name) for check in found.checks)
    begin = " " * (width + 9)
    lines = []
    for check in found.checks:
        lines.append(
            Paragraph(f"{check.status:<7}{check.name:<{width}}  {check.found}", indent=begin)
        )
        if check.remedy:
            lines.append(Paragraph(f"{begin}-> {check.remedy}", indent=begin + "   "))
    return [Group(*lines)]
