"""Output of the cache commands for people."""

from rich.console import Group

from prunesearch.report.study import Document, Parts
from prunesearch.report.tables import (
    Paragraph,
    Prose,
    size,
    table,
)


def stats(document: Document) -> Parts:
    """Show the entries by model and objective, their use by each study, and incidents."""
    groups = []
    for group in document["groups"]:
        groups.append(
            (group["model"], group["objective"], f"{group['entries']:,}", size(group["bytes"]))
        )
    title = f"{document['place']}: {document['entries']:,} entries, {size(document['bytes'])}"
    parts: Parts = [table(title, ("model", "objective", "entries", "size"), groups)]
    # The use by each study.
    studies = []
    for study in document["studies"]:
        rate, saved = f"{study['hit_rate']:.1%}", f"{study['saved_seconds']:,.0f}"
        studies.append((study["study"], study["hits"], study["computed"], rate, saved))
    if studies:
        parts.append(
            table("Trials", ("study", "hits", "computed", "hit rate", "seconds saved"), studies)
        )
    # Anything that the user may have to look at.
    if document["unsent"]:
        parts.append(f"{document['unsent']:,} entries wait to be sent to the shared cache")
    incidents = document["alarms"]
    if any(incidents.values()):
        parts.append(
            f"alarms: {incidents['damage']} damaged, {incidents['disagreement']} in disagreement; "
            "see prunesearch cache verify"
        )
    return parts


def verified(document: Document) -> Parts:
    """Show the result of a check of the cache, one line per backend, and the incidents so far."""
    parts: Parts = []
    for backend in document["tiers"]:
        line = f"{backend['place']}: {backend['sound']:,} entries are sound, {backend['damaged']:,} damaged"
        if backend["damaged"]:
            line += " and taken out: they will be computed again"
        parts.append(line)
    for backend in document["tiers"]:
        for line in backend["file"]:
            parts.append(f"{backend['place']}: {line}")
    if document["alarms"]:
        rows = []
        for incident in document["alarms"]:
            rows.append(
                (
                    incident["kind"],
                    incident["at"],
                    incident["key"][:12],
                    Prose(incident["detail"][:200]),
                )
            )
        parts.append(table("Alarms so far", ("kind", "when", "entry", "found"), rows))
    return parts


def exported(document: Document) -> Parts:
    """Show the file that the entries were written to."""
    return [f"exported {document['entries']:,} entries to {document['file']}"]


def imported(document: Document) -> Parts:
    """Show the number of imported entries, and those that contradict the cache."""
    parts: Parts = [f"read {document['read']:,} entries, {document['new']:,} of them new"]
    if conflicts := document["conflicts"]:
        parts.append(
            f"{conflicts} disagree with the value for their key; the one that was computed first "
            f"stays: see "
            "prunesearch cache verify"
        )
    return parts


def swept(document: Document) -> Parts:
    """Show what was removed from the cache."""
    return [
        f"removed {document['entries']:,} entries stored before {document['before']}, "
        f"{document['leases']} leases that "
        f"had run out, {document['owners']} traces of dead processes, {document['quarantined']} "
        f"damaged files"
    ]


def path(document: Document) -> Parts:
    """Show the locations of the cache, one per line, for scripts."""
    return [document["folder"], document["url"] or ""]


def doctor(document: Document) -> Parts:
    """Show every check, with a remedy for each problem."""
    # Continuation lines are indented to the column of the findings.
    width = max(len(check["name"]) for check in document["checks"])
    begin = " " * (width + 9)
    lines = []
    for check in document["checks"]:
        lines.append(
            Paragraph(
                f"{check['status']:<7}{check['name']:<{width}}  {check['found']}", indent=begin
            )
        )
        if check["remedy"]:
            lines.append(Paragraph(f"{begin}-> {check['remedy']}", indent=begin + "   "))
    return [Group(*lines)]
