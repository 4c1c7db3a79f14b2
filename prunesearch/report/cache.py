"""Output of the cache commands for people."""

from rich.console import Group

from prunesearch.cache.location import CacheLocation
from prunesearch.cache.maintenance import CacheCheck, Swept
from prunesearch.cache.transfer import ExportedFile, Imported
from prunesearch.report.checks import Checks
from prunesearch.report.tables import Paragraph, Parts, Prose, size, table
from prunesearch.studies.cache_use import CacheStatistics


def stats(found: CacheStatistics) -> Parts:
    """Show the entries by model and objective, their use by each study, and incidents."""
    groups = []
    for group in found.groups:
        groups.append((group.model, group.objective, f"{group.entries:,}", size(group.bytes)))
    title = f"{found.place}: {found.entries:,} entries, {size(found.bytes)}"
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
        parts.append(f"{found.unsent:,} entries wait to be sent to the shared cache")
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
        line = f"{backend.place}: {backend.sound:,} entries are sound, {backend.damaged:,} damaged"
        if backend.damaged:
            line += " and taken out: they will be computed again"
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
    return [f"exported {done.entries:,} entries to {done.file}"]


def imported(done: Imported) -> Parts:
    """Show the number of imported entries, and those that contradict the cache."""
    parts: Parts = [f"read {done.read:,} entries, {done.new:,} of them new"]
    if conflicts := done.conflicts:
        parts.append(
            f"{conflicts} disagree with the value for their key; the one that was computed first "
            f"stays: see "
            "prunesearch cache verify"
        )
    return parts


def swept(done: Swept) -> Parts:
    """Show what was removed from the cache."""
    return [
        f"removed {done.entries:,} entries stored before {done.before}, "
        f"{done.leases} leases that "
        f"had run out, {done.owners} traces of dead processes, {done.quarantined} "
        f"damaged files"
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
