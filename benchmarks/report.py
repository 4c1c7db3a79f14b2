"""How long the report of a long study takes, how large its page is, and whether a browser opens it.

    python -m benchmarks.report --json FILE

The study is synthetic: 10,000 trials of subsets of 80 layers, written straight to a SQLite database.
`prunesearch report` runs as a process of its own, so its imports count. Chromium opens the page
from its file, without network, at 1280 and 390 pixels, light and dark; what its console says, and
any request, is counted as a problem. Without Chromium these figures are left out.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.support.record import Record, arguments
from tests.support.browser import CHROMIUM, SCHEMES, chromium, opened
from tests.support.synthetic_studies import SyntheticStudy, write_study

WIDTHS = (1280, 390)
HOSTS = {"file:", "data:", "blob:"}


def main() -> None:
    """Run the benchmark."""
    options = arguments(__doc__ or "")
    record = Record("report", options.size)
    with tempfile.TemporaryDirectory() as folder:
        measure(record, Path(folder))
    record.finish(options.json)


def measure(record: Record, folder: Path) -> None:
    """Write the study, make its report, and open the page."""
    # 1. Write the study.
    trials, layers = record.by_size(10_000, 3000, 60), record.by_size(80, 80, 12)
    wanted = SyntheticStudy("long", layers=layers, drop=layers // 4, trials=trials)
    begun = time.perf_counter()
    write_study(folder / "study.db", wanted)
    record.add("trials", trials)
    record.add("layers", layers)
    record.add("seconds to write the study", time.perf_counter() - begun)
    # 2. Make the report, as a user does.
    storage = f"sqlite:///{folder / 'study.db'}"
    words = ["report", "long", "--out", str(folder / "report"), "--storage", storage]
    words += ["--cache", str(folder / "cache"), "--json"]
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "prunesearch", *words], capture_output=True, text=True, check=True
    )
    record.add("seconds", time.perf_counter() - begun, "<= 20")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    record.add("seconds of CPU", used.ru_utime + used.ru_stime)
    record.add("peak memory (MiB)", used.ru_maxrss / 1024)
    # 3. Look at what was written.
    document = json.loads(done.stdout)
    page = Path(document["page"])
    images = [path for path in document["files"] if path.endswith(".png")]
    everything = sum(Path(path).stat().st_size for path in document["files"])
    record.add("page (MB)", page.stat().st_size / 1e6, "<= 8")
    record.add("images", len(images))
    record.add("all files (MB)", everything / 1e6)
    record.notes["not shown"] = document["not_shown"]
    if CHROMIUM is not None:
        open_page(record, page)


def open_page(record: Record, page: Path) -> None:
    """Open the page in Chromium and record how long it takes, and what goes wrong."""
    slowest, wider = 0.0, 0
    problems: list[str] = []
    with chromium() as browser:
        for width in WIDTHS:
            for scheme in SCHEMES:
                with opened(browser, width, HOSTS, color_scheme=scheme) as watched:
                    begun = time.perf_counter()
                    watched.page.goto(page.as_uri())
                    watched.page.wait_for_selector("html[data-drawn]")
                    slowest = max(slowest, time.perf_counter() - begun)
                    wider += watched.page.evaluate(
                        "Number(document.documentElement.scrollWidth > innerWidth)"
                    )
                    problems += watched.problems
                    watched.problems.clear()  # they are recorded instead of raised
    record.add("seconds until all figures are drawn", slowest)
    record.add("problems in Chromium", len(problems), "== 0")
    record.add("widths with horizontal scrolling", wider, "== 0")
    record.notes["problems"] = problems


if __name__ == "__main__":
    main()
