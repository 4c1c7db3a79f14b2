"""A headless Chromium that tests drive as a user would, and what it complains about."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Request,
    Response,
    sync_playwright,
)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync")
_CONTRAST = """() => {
  const parse = text => { const c = text.match(/[\\d.]+/g).map(Number); return [c[0], c[1], c[2], c[3] ?? 1]; };
  const light = c => { const p = c.slice(0, 3).map(v => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * p[0] + 0.7152 * p[1] + 0.0722 * p[2]; };
  const ground = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c[3] === 1) return c; } return [255, 255, 255, 1]; };
  const bad = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !e.checkVisibility({checkVisibilityCSS: true}) || e.closest('.hint, option, svg')) continue;
    const a = light(parse(getComputedStyle(e).color)), b = light(ground(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) bad.push(ratio.toFixed(2) + ' ' + e.outerHTML.slice(0, 80));
  }
  return bad;
}"""
_TARGETS = """() => [...document.querySelectorAll('button, .button, input, select, textarea, summary, nav a, .links a')]
  .filter(e => e.checkVisibility() && !['checkbox', 'hidden'].includes(e.type))
  .map(e => [e.getBoundingClientRect(), e]).filter(([r]) => r.height < 40)
  .map(([r, e]) => r.height + ' ' + e.outerHTML.slice(0, 80))"""
_WIDER = """() => document.documentElement.scrollWidth > innerWidth
  ? [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.scroll'))
      .slice(0, 3).map(e => e.outerHTML.slice(0, 120)).concat(['the page is wider than the screen'])
  : []"""
_FOCUS = """() => { const e = document.activeElement, s = getComputedStyle(e);
  return e === document.body || e.id === 'main' || (s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2); }"""


@dataclass
class Watched:
    """A page, and what went wrong on it.

    Attributes:
        page: the page.
        problems: console errors, failures of scripts, failed requests and answers, dialogs, and
            requests to other hosts.
        expected: parts of problems that a test expects, which are left out.
    """

    page: Page
    hosts: set[str]
    problems: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    def attach(self) -> None:
        """Begin to watch."""
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self._add(f"script: {error}"))
        self.page.on("requestfailed", self._failed)
        self.page.on("request", self._request)
        self.page.on("response", self._response)
        self.page.on("dialog", lambda dialog: self._add(f"dialog: {dialog.message}"))

    def _add(self, problem: str) -> None:
        if not any(part in problem for part in self.expected):
            self.problems.append(problem)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self._add(f"console {message.type}: {message.text}")

    def _failed(self, request: Request) -> None:
        # A browser stops what a page still loads when the user goes on to another page.
        if request.failure != "net::ERR_ABORTED":
            self._add(f"failed: {request.url} {request.failure}")

    def _request(self, request: Request) -> None:
        if not any(request.url.startswith(host) for host in self.hosts):
            self._add(f"request to another host: {request.url}")

    def _response(self, response: Response) -> None:
        if response.status >= 400:
            self._add(f"status {response.status}: {response.url}")

    def check_layout(self) -> None:
        """Check the page as it is shown: contrast, sizes of what is tapped, and its width."""
        for scheme in SCHEMES:
            self.page.emulate_media(color_scheme=scheme)
            assert self.page.evaluate(_CONTRAST) == [], (self.page.url, scheme)
        assert self.page.evaluate(_TARGETS) == [], self.page.url
        assert self.page.evaluate(_WIDER) == [], self.page.url

    def tab_to(self, selector: str, most: int = 80) -> None:
        """Press Tab until an element has the focus, which must be visible on the way."""
        for _ in range(most):
            self.page.keyboard.press("Tab")
            assert self.page.evaluate(_FOCUS), "the focus is not visible"
            if self.page.evaluate("s => document.activeElement.matches(s)", selector):
                return
        raise AssertionError(f"{selector} cannot be reached with the keyboard")


SCHEMES: tuple[Literal["light", "dark"], ...] = ("dark", "light")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start a browser."""
    sandbox = () if os.geteuid() else ("--no-sandbox",)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*sandbox, *_QUIET])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Browser, width: int, hosts: set[str], **options: Any) -> Iterator[Watched]:  # noqa: ANN401 (of playwright)
    """Open a page in a profile of its own, and check at the end that nothing went wrong."""
    context: BrowserContext = browser.new_context(
        viewport={"width": width, "height": 844},
        has_touch=width < 500,
        timezone_id="Asia/Tokyo",
        locale="en-GB",
        reduced_motion="reduce",
        **options,
    )
    context.set_default_timeout(60_000)
    watched = Watched(context.new_page(), hosts)
    watched.attach()
    try:
        yield watched
        assert watched.problems == []
    finally:
        context.close()
