"""A stand-in for the process of a job, which starts at once. The name of the study says what it
does; a folder that the environment names has its log, and the signs that a test gives.

``quick`` finishes. ``hold`` searches until the file ``NAME.go`` exists, or until it is told to
stop. ``die`` kills itself, as if memory had run out. ``die2`` does so twice, and then finishes.
``fail`` reports a failure, and ``fail1`` once. ``secret`` writes a password to its log. ``deaf`` ignores SIGTERM.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

FOLDER = "STAND_IN_FOLDER"
"""Environment variable with the folder."""
PASSWORD = "hunter2-of-the-database"
TRIALS = 3


def say(kind: str, **data: object) -> None:
    """Write one line for the runner."""
    print(json.dumps({"kind": kind, "data": data}), flush=True)


def stage(name: str, state: str) -> None:
    say("stage", name=name, state=state, seconds=0.01 if state == "finished" else None)


def told(done: int) -> None:
    """Report a trial."""
    rest = {"study": "s", "best_dropped": "1,2", "under_way": 0, "front": 0, "dropped": "1,2"}
    say(
        "search",
        **{**rest, "done": done, "total": TRIALS, "hits": 0, "computed": done},
        **{"best_value": 0.5, "value": 0.5, "cached": False},
    )


class Listener:
    """What the runner has said."""

    def __init__(self) -> None:
        self.stopped, self.ended = threading.Event(), threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()
        signal.signal(signal.SIGTERM, lambda *_: self.ended.set())

    def _listen(self) -> None:
        for line in sys.stdin:
            if line.strip() == "stop":
                self.stopped.set()
        self.ended.set()


def main() -> None:
    order = json.loads(sys.stdin.readline())
    folder, study = Path(os.environ[FOLDER]), order["study"]
    listener = Listener()  # before the log says that the process has started: it may be paused then
    note(folder, f"start {study} {os.getpid()} {order['device']} {order['out']}")
    act(study.partition("-")[0], study, folder, listener)
    note(folder, f"end {study} {os.getpid()}")
    stage("search", "finished")
    if order["command"] == "run":
        for name in ("select", "compensate", "tune", "heal", "export", "verify", "evaluate"):
            stage(name, "skipped")
    stage("report", "running")
    stage("report", "finished")
    say("report", study=study, trials=TRIALS, export={"folder": order["out"]})


def act(kind: str, study: str, folder: Path, listener: Listener) -> None:
    """Do what the name of the study says."""
    stage("search", "running")
    if kind == "fail" or (kind == "fail1" and starts(folder, study) == 1):
        say("failed", error=f"the model in {Path.cwd()}/models/fake is too large")
        sys.exit(1)
    if kind == "secret":
        url = f"postgresql://me:{PASSWORD}@host/db"
        print(f"cannot reach {url}\x1b[31m", file=sys.stderr, flush=True)
    if kind == "die" or (kind == "die2" and starts(folder, study) <= 2):
        os.kill(os.getpid(), signal.SIGKILL)
    told(1)
    while kind in ("hold", "deaf") and not (folder / f"{study}.go").exists():
        if listener.stopped.is_set():
            break
        if listener.ended.is_set() and kind == "hold":
            note(folder, f"end {study} {os.getpid()}")
            os._exit(143)
        time.sleep(0.01)
    for done in range(2, TRIALS + 1):
        told(done)


def note(folder: Path, line: str) -> None:
    """Add a line to the log."""
    with (folder / "log").open("a") as log:
        log.write(line + "\n")


def starts(folder: Path, study: str) -> int:
    """How often a process of a study was started."""
    lines = (folder / "log").read_text().splitlines()
    return sum(line.startswith(f"start {study} ") for line in lines)


if __name__ == "__main__":
    main()
