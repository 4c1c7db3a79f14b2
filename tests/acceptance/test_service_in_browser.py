"""The service in a real browser: sign in, submit, watch to the end, report, dashboard, cancel.

It runs at the width of a desktop with the keyboard alone, and at the width of a phone.
"""

import importlib.util
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
from playwright.sync_api import Browser

from prunesearch.config.recipe import Recipe
from tests.support.browser import CHROMIUM, Watched, chromium, opened
from tests.support.html_page import check_page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
HAS_DASHBOARD = importlib.util.find_spec("prunesearch.service.dashboard") is not None
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)> \u202egnp " + "W" * 440


@dataclass
class Started:
    """A service that runs."""

    base: str
    dashboard: str
    token: str
    storage: str

    @property
    def hosts(self) -> set[str]:
        return {self.base, self.dashboard, "blob:", "data:"}


def free_ports(count: int) -> list[int]:
    """Ports that are free now."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def service(
    tiny_folder: Path, prose: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Started]:
    """`prunesearch serve` with a tiny model, as a process."""
    folder = tmp_path_factory.mktemp("service")
    port, dashboard = free_ports(2)
    storage = f"sqlite:///{folder}/study.db"
    command = [
        *(sys.executable, "-m", "prunesearch", "serve", "--json", "--port", str(port)),
        *("--storage", storage, "--cache", str(folder / "cache")),
        *("--model-folder", str(tiny_folder.parent), "--data-folder", str(prose.parent)),
        *("--exports", str(folder / "exports")),
        *(("--dashboard-port", str(dashboard)) if HAS_DASHBOARD else ("--no-dashboard",)),
    ]
    with (folder / "errors").open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.rstrip() == "}":
                break
        said: dict[str, Any] = json.loads("".join(lines))
        token = Path(said["token_file"]).read_text().strip()
        address = f"http://127.0.0.1:{dashboard}"
        yield Started(f"http://127.0.0.1:{port}", address, token, storage)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) in (0, 130)
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in (folder / "errors").read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


def check(watched: Watched) -> None:
    """Check the page that is shown, by its source and by how it looks."""
    check_page(watched.page.content())
    watched.check_layout()


def sign_in(watched: Watched, service: Started) -> None:
    """Sign in with the keyboard. The field has the focus."""
    page = watched.page
    page.goto(f"{service.base}/")
    assert page.url == f"{service.base}/sign-in?next=/"
    check(watched)
    page.keyboard.type(service.token)
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Sign out")
    assert page.url == f"{service.base}/"


def fill_with_keyboard(watched: Watched, study: str) -> None:
    """Choose the tiny model and two layers to drop, and submit, without a mouse."""
    page = watched.page
    watched.tab_to("a.button[href='/submit']")
    page.keyboard.press("Enter")
    page.wait_for_selector("#model")
    check(watched)
    # The first stop of every page leads to its content.
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    for field, text in (
        ("model", "tiny"), ("calibration", "prose"), ("tokens", "128"), ("drop", "2"),
        ("trials", "12"), ("study", study),
    ):  # fmt: skip
        watched.tab_to(f"#{field}")
        if field == "drop":
            page.keyboard.press("Control+A")
        page.keyboard.type(text)
    watched.tab_to("button[value=check]")
    page.keyboard.press("Enter")
    page.wait_for_selector("#checked")
    assert page.input_value("#study") == study
    watched.tab_to("button[value=submit]")
    page.keyboard.press("Enter")


def fill_with_fingers(watched: Watched, study: str) -> None:
    """The same on a phone, from YAML."""
    page = watched.page
    page.tap("a.button[href='/submit']")
    page.tap("text=Paste YAML")
    page.wait_for_selector("#yaml")
    check(watched)
    recipe = "model: tiny-llama\ndata: {calibration: prose.txt, tokens: 128}\nsearch: {drop: 2}\n"
    page.fill("#yaml", recipe)
    page.fill("#trials", "12")
    page.fill("#study", study)
    page.tap("button[value=submit]")


@pytest.mark.parametrize("width", [1280, 390])
def test_from_sign_in_to_sign_out(service: Started, browser: Browser, width: int) -> None:
    with opened(browser, width, service.hosts) as watched:
        page = watched.page
        sign_in(watched, service)
        check(watched)
        # 1. Submit a job.
        if width > 500:
            fill_with_keyboard(watched, f"at-{width}")
        else:
            fill_with_fingers(watched, f"at-{width}")
        page.wait_for_url("**/jobs/job-*")
        first = page.url
        # 2. Submit another one like it, which waits for the first, and cancel it.
        page.click("summary:has-text('Recipe')")
        page.click("text=Submit one like it")
        page.fill("#study", f"cancelled-at-{width}")
        page.click("button[value=submit]")
        page.wait_for_url("**/jobs/job-*")
        assert page.url != first
        watched.tab_to("button[popovertarget=confirm-cancel]")
        page.keyboard.press("Enter")
        page.wait_for_selector("#confirm-cancel:popover-open")
        # Esc closes the question, and the button that opened it has the focus again.
        page.keyboard.press("Escape")
        page.wait_for_selector("#confirm-cancel", state="hidden")
        page.keyboard.press("Enter")
        page.click("#confirm-cancel button.danger")
        page.wait_for_selector("#state-title .state.cancelled")
        # 3. Watch the first one to its end. The page follows without being loaded again.
        page.goto(first)
        page.evaluate("window.stays = true")
        page.wait_for_selector("#state-title .state.finished", timeout=90_000)
        page.wait_for_selector("#report-card")
        page.wait_for_function("document.querySelectorAll('#curve circle').length >= 10")
        assert page.evaluate("window.stays")
        page.wait_for_selector("#announce:has-text('The job is finished.')", state="attached")
        assert "[export: running]\n[export: finished]" in page.inner_text("#lines")
        # Times are those of the browser's zone.
        shown, exact = page.eval_on_selector("time", "e => [e.textContent, e.dateTime]")
        assert re.fullmatch(r"\d\d\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", exact)
        assert shown != exact
        check(watched)
        # 4. The report and the export.
        assert "drops layers" in page.inner_text("#report-card")
        with page.expect_download() as download:
            page.click("text=Download all")
        assert download.value.suggested_filename.endswith(".tar")
        # 5. The study, sorted by its value, and the dashboard.
        page.click("text=The study:")
        page.wait_for_selector("#trials-card")
        page.click("#trials-card th a:has-text('kl')")
        page.wait_for_selector("th[aria-sort=ascending]:has-text('kl')")
        check(watched)
        if HAS_DASHBOARD:
            with page.expect_popup() as popup:
                page.click("header >> text=Dashboard")
            popup.value.wait_for_selector(f"text=at-{width}")
            assert popup.value.url.startswith(service.dashboard)
        # 6. The list has both jobs, and the user signs out.
        page.click("text=Jobs")
        page.wait_for_selector(f"li.job:has-text('cancelled-at-{width}')")
        check(watched)
        page.click("text=Sign out")
        page.wait_for_selector("text=You are signed out")
        page.goto(first)
        assert page.url.startswith(f"{service.base}/sign-in")


def test_pages_work_without_scripts(service: Started, browser: Browser) -> None:
    with opened(browser, 390, service.hosts, java_script_enabled=False) as watched:
        page = watched.page
        page.goto(f"{service.base}/submit")
        page.fill("#token", service.token)
        page.click("button.primary")
        page.wait_for_selector("#model")
        page.goto(service.base)
        page.click("li.job a")
        page.wait_for_selector("#curve circle, #curve .muted")
        page.click("button[popovertarget=confirm-delete]")
        assert page.is_visible("#confirm-delete")
        assert page.inner_text("time").endswith("UTC")


def test_hostile_names_run_nothing_and_fit_the_screen(service: Started, browser: Browser) -> None:
    study = optuna.create_study(storage=service.storage, study_name=HOSTILE)
    recipe = Recipe(model=HOSTILE, drop="2").document()
    study.set_user_attr("recipe", json.dumps(recipe))
    study.add_trial(optuna.create_trial(value=1.0, user_attrs={"dropped": HOSTILE}))
    for width in (1280, 390):
        with opened(browser, width, service.hosts) as watched:
            page = watched.page
            sign_in(watched, service)
            check(watched)
            page.click("#studies a:has-text('alert(1)')")
            page.wait_for_selector("#trials-card")
            check(watched)
            assert HOSTILE[:30] in page.inner_text("h1")
            # A line of a log, as the stream brings it.
            page.goto(service.base)
            page.click("li.job a")
            page.wait_for_selector("#lines")
            page.evaluate("text => addLine(text)", HOSTILE)
            assert page.inner_text("#lines").count("<img src=x") == 1
            assert "\\u202e" in page.inner_text("#lines")
            check(watched)


def test_mistakes_get_the_focus(service: Started, browser: Browser) -> None:
    with opened(browser, 390, service.hosts) as watched:
        page = watched.page
        watched.expected += ["status 422", "422 (Unprocessable", "status 404", "404 (Not Found)"]
        sign_in(watched, service)
        page.goto(f"{service.base}/submit")
        page.fill("#drop", "lots")
        page.click("button[value=submit]")
        page.wait_for_selector("#problems")
        assert page.evaluate("document.activeElement.id") == "model"
        assert page.input_value("#drop") == "lots"
        check(watched)
        for path in ("/tokens", "/audit", "/nosuch"):
            page.goto(service.base + path)
            check(watched)
