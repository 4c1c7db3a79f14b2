"""What the commands on the store print."""

from rich.console import Group

from prunesearch.report.study import Document, Parts
from prunesearch.report.tables import Paragraph, Prose, size, table


def stats(document: Document) -> Parts:
    """Entries by model and kind of data, what they did for each study, and what must be looked at."""
    groups = [(g["model"], g["objective"], f"{g['entries']:,}", size(g["bytes"])) for g in document["groups"]]
    studies = [
        (s["study"], s["hits"], s["computed"], f"{s['hit_rate']:.1%}", f"{s['saved_seconds']:,.0f}")
        for s in document["studies"]
    ]
    alarms = document["alarms"]
    return [
        table(
            f"{document['place']}: {document['entries']:,} entries, {size(document['bytes'])}",
            ("model", "objective", "entries", "size"),
            groups,
        ),
        table("Trials", ("study", "hits", "computed", "hit rate", "seconds saved"), studies) if studies else "",
        f"{document['unsent']:,} entries wait to be sent to the shared cache" if document["unsent"] else "",
        f"alarms: {alarms['damage']} damaged, {alarms['disagreement']} in disagreement; see prunesearch cache verify"
        if any(alarms.values())
        else "",
    ]


def verified(document: Document) -> Parts:
    """What was checked and what was found."""
    parts: Parts = [
        f"{t['place']}: {t['sound']:,} entries are sound, {t['damaged']:,} damaged"
        + (" and taken out: they will be computed again" if t["damaged"] else "")
        for t in document["tiers"]
    ]
    parts += [f"{t['place']}: {line}" for t in document["tiers"] for line in t["file"]]
    if document["alarms"]:
        rows = [(a["kind"], a["at"], a["key"][:12], Prose(a["detail"][:200])) for a in document["alarms"]]
        parts.append(table("Alarms so far", ("kind", "when", "entry", "found"), rows))
    return parts


def exported(document: Document) -> Parts:
    """Where the file is."""
    return [f"exported {document['entries']:,} entries to {document['file']}"]


def imported(document: Document) -> Parts:
    """What came in."""
    conflicts = document["conflicts"]
    return [
        f"read {document['read']:,} entries, {document['new']:,} of them new",
        f"{conflicts} disagree with the value for their key; the one that was computed first stays: see prunesearch "
        "cache verify"
        if conflicts
        else "",
    ]


def swept(document: Document) -> Parts:
    """What is gone."""
    return [
        f"removed {document['entries']:,} entries stored before {document['before']}, {document['leases']} leases that "
        f"had run out, {document['owners']} traces of dead processes, {document['quarantined']} damaged files"
    ]


def path(document: Document) -> Parts:
    """The places, one a line, for scripts."""
    return [document["folder"], document["url"] or ""]


def doctor(document: Document) -> Parts:
    """Every check, and what to do about those that found something."""
    width = max(len(check["name"]) for check in document["checks"])
    begin = " " * (width + 9)
    lines = []
    for check in document["checks"]:
        lines.append(Paragraph(f"{check['status']:<7}{check['name']:<{width}}  {check['found']}", indent=begin))
        if check["remedy"]:
            lines.append(Paragraph(f"{begin}-> {check['remedy']}", indent=begin + "   "))
    return [Group(*lines)]
