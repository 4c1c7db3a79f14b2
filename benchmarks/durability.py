"""Searches that are killed, stopped and cut off from their database lose nothing and repeat
nothing.

    python -m benchmarks.durability --kills 200 --backend sqlite|postgresql --json OUT

Four processes search studies through the real engine, store, samplers and study database (the model
is a formula that sleeps), on two machines' worth of cache folders with PostgreSQL, on one folder
with SQLite. They die by SIGKILL: at a random moment, or at a failpoint that was drawn when they
were started. Every acknowledgement is a line that the code under test syncs to disk after its
commit returned; another process compares all of them with what is stored. Then 8 processes ask for
the same keys at once, 50 owners are stopped past their leases and continued, and PostgreSQL is
stopped and crashed under load. Last, three searches are disturbed whose studies are in the database
that crashes, stops, and is cut off at commits and elsewhere.
"""

import time

from benchmarks.support.record import Record, arguments
from tests.support.killed_searches import (
    TRIALS,
    checked,
    fencing,
    ground,
    kill_searches,
    outages,
    single_flight,
)
from tests.support.study_outages import crash_server, cut_connections


def measure(record: Record, backend: str, kills: int) -> None:
    """All figures of one back end."""
    with ground(backend) as (place, _):
        begun = time.perf_counter()
        died = kill_searches(place, kills, record.by_size(TRIALS, TRIALS, 12))
        found = checked(place)
        record.add("kills", died)
        record.add("acknowledged", found["acknowledged"])
        record.add("lost", found["lost"], "== 0")
        record.add("repeated", found["repeated"], "== 0")
        record.add("extra_starts", found["extra"], f"<= {died}")
        record.add("starts", found["starts"])
        record.add("incidents", found["incidents"], "== 0")
        record.add("seconds", time.perf_counter() - begun)
    with ground(backend) as (place, _):
        processes, keys = record.by_size((8, 200), (8, 200), (4, 20))
        found_once = single_flight(place, processes, keys)
        record.add(f"single_flight_scorings_of_{keys}", found_once, f"== {keys}")
    with ground(backend) as (place, _):
        owners = record.by_size(50, 10, 3)
        accepted, refused = fencing(place, owners)
        record.add("stale_owners", owners)
        record.add("stale_commits_accepted", accepted, "== 0")
        record.add("stale_commits_refused", refused, f"== {owners}")
    if backend == "postgresql":
        with ground(backend) as (place, server):
            assert server is not None
            outcome = outages(place, server, *record.by_size((20, 30.0), (3, 5.0), (1, 1.0)))
            found = checked(place)
            record.add("outage_acknowledged", found["acknowledged"])
            record.add("outage_lost", found["lost"], "== 0")
            record.add("outage_workers_that_gave_up", outcome["gave_up"], "== 0")
            record.add("outage_recovery_seconds", outcome["recovery"], "<= 10")
        with ground(backend) as (_, server):
            assert server is not None
            crashes, down, cuts = record.by_size((10, 30.0, 500), (3, 5.0, 60), (1, 0.5, 6))
            for name, became in (
                ("study_crash", crash_server(server, crashes, down)),
                ("study_cut", cut_connections(server, cuts)),
            ):
                record.add(f"{name}s", became.outages)
                record.add(f"{name}_studies", became.studies)
                record.add(f"{name}_processes_that_gave_up", became.gave_up, "== 0")
                record.add(f"{name}_studies_that_changed", became.changed, "== 0")


def main() -> None:
    """Run the benchmark."""
    options = arguments(
        __doc__ or "",
        {
            "--kills": {"type": int, "help": "processes to kill; default 200, quick 20"},
            "--backend": {"choices": ["sqlite", "postgresql"], "default": "sqlite"},
        },
    )
    record = Record("durability", options.size)
    measure(record, options.backend, options.kills or record.by_size(200, 20, 4))
    record.finish(options.json)


if __name__ == "__main__":
    main()
