"""The page in a headless Chromium, from a file: at 1280 and 390 pixels, light and dark."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from prunesearch.report.page.html_page import render_page
from tests.support.browser import CHROMIUM, SCHEMES, Watched, chromium, opened
from tests.support.report_contents import contents

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

OVERLAPS = """() => {
  // Texts of a figure, and of the page around it. A text that is not shown has no box.
  const texts = [...document.querySelectorAll('svg text, h1, h2, h3, figcaption, button, summary, td, th, .badge')];
  const boxes = texts.map(e => [e, e.getBoundingClientRect()])
    .filter(([e, r]) => r.width > 0 && r.height > 0 && e.textContent.trim() && e.checkVisibility({opacityProperty: true, visibilityProperty: true}));
  const found = [];
  for (let i = 0; i < boxes.length; i++) for (let j = i + 1; j < boxes.length; j++) {
    const [a, r] = boxes[i], [b, s] = boxes[j];
    if (a.contains(b) || b.contains(a)) continue;
    const width = Math.min(r.right, s.right) - Math.max(r.left, s.left);
    const height = Math.min(r.bottom, s.bottom) - Math.max(r.top, s.top);
    // Boxes have room around their letters, so two pixels do not count.
    if (width > 2 && height > 2) found.push(`${a.textContent.trim().slice(0, 40)} | ${b.textContent.trim().slice(0, 40)}`);
  }
  return found;
}"""
CUT_OFF = """() => [...document.querySelectorAll('.plot')].flatMap(plot => {
  const r = plot.getBoundingClientRect();
  return [...plot.querySelectorAll('svg text')].filter(e => e.textContent.trim() && e.getBoundingClientRect().width > 0)
    .filter(e => { const s = e.getBoundingClientRect(); return s.left < r.left - 1 || s.right > r.right + 1 || s.bottom > r.bottom + 1; })
    .map(e => `${plot.id}: ${e.textContent}`);
})"""
COLOURS = """() => [...new Set([...document.querySelectorAll('#lines-0 .scatterlayer .js-line')]
  .map(e => getComputedStyle(e).stroke))]"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "index.html"
    path.write_text(render_page(contents()), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


def show(watched: Watched, address: str) -> Page:
    """Open the page and wait until the figures are drawn."""
    watched.page.goto(address)
    wait_until_drawn(watched.page, "light", 1280)
    return watched.page


def wait_until_drawn(page: Page, scheme: str, width: int) -> None:
    """Wait until the figures are drawn in a scheme and for a width."""
    drawn = "wanted => document.documentElement.dataset.drawn === wanted"
    page.wait_for_function(drawn, arg=f"{scheme} {width}")


def test_the_page_is_whole_at_every_width_and_in_every_scheme(
    browser: Browser, address: str
) -> None:
    # Anything that the console says, and any request, is a problem that `opened` reports.
    with opened(browser, 1280, {"file:", "data:", "blob:"}, color_scheme="light") as watched:
        page = show(watched, address)
        for details in page.query_selector_all("#studies details, #reproduce details"):
            details.evaluate("e => e.open = true")
        colours = {}
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 844})
            for scheme in SCHEMES:
                page.emulate_media(color_scheme=scheme)
                wait_until_drawn(page, scheme, width)
                assert page.evaluate(OVERLAPS) == [], (scheme, width)
                assert page.evaluate(CUT_OFF) == [], (scheme, width)
                colours[scheme] = page.evaluate(COLOURS)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
        # On a phone, where fingers tap, what is tapped is large.
        watched.check_layout()
        # The figures follow the scheme.
        assert "rgb(0, 114, 178)" in colours["light"]
        assert "rgb(0, 114, 178)" not in colours["dark"]
        check_legend(page)


def check_legend(page: Page) -> None:
    """A name in the legend hides its series, and shows it again."""
    traces = page.locator("#lines-0 .scatterlayer .trace")
    before = traces.count()
    button = page.locator("#lines .legend button", has_text="woa")
    button.click()
    # The line and both ends of its band.
    assert traces.count() == before - 3
    assert button.get_attribute("aria-pressed") == "false"
    button.click()
    assert traces.count() == before


def test_without_scripts_the_numbers_can_be_read(browser: Browser, address: str) -> None:
    options = {"java_script_enabled": False, "color_scheme": "light"}
    with opened(browser, 390, {"file:"}, **options) as watched:
        watched.page.goto(address)
        assert "The numbers of each figure stand below it." in watched.page.inner_text("body")
        watched.page.click("#lines summary")
        assert watched.page.locator("#lines td").first.is_visible()
