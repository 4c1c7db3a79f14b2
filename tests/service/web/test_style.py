"""The style sheet: contrast of all colours in use, and nothing from elsewhere."""

import re

import pytest

from prunesearch.service.web.rendering import FOLDER, STATIC

STYLE = (STATIC / "app.css").read_text()
PAIRS = (
    *((text, ground) for text in ("text", "muted", "accent", "good", "warn", "bad")
      for ground in ("surface", "ground")),
    *((text, "sunken") for text in ("text", "muted")),
    ("on-accent", "accent"), ("warn", "warn-ground"), ("bad", "bad-ground"), ("good", "good-ground"),
)  # fmt: skip
"""Names of a text's colour and of the colour that it is on."""
CONTROLS = (("edge", "surface"), ("edge", "ground"), ("mark", "sunken"), ("accent", "sunken"))
"""Borders of controls, and marks of charts, which need less."""


def colours(scheme: str) -> dict[str, str]:
    """The variables of a scheme."""
    light, dark = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)[:2]
    found = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", light))
    if scheme == "dark":
        found |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", dark))
    return found


def luminance(colour: str) -> float:
    """Relative luminance as in WCAG 2.2."""
    total = 0.0
    for start, weight in ((1, 0.2126), (3, 0.7152), (5, 0.0722)):
        part = int(colour[start : start + 2], 16) / 255
        linear = part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        total += weight * linear
    return total


def contrast(one: str, other: str) -> float:
    """Contrast ratio as in WCAG 2.2."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_ratio_is_that_of_the_standard() -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_and_controls_have_enough_contrast(scheme: str) -> None:
    known = colours(scheme)
    for text, ground in PAIRS:
        assert contrast(known[text], known[ground]) >= 4.5, (text, ground)
    for edge, ground in CONTROLS:
        assert contrast(known[edge], known[ground]) >= 3, (edge, ground)


def test_both_schemes_set_every_colour() -> None:
    light, dark = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)[:2]
    assert set(re.findall(r"--[\w-]+", light)) == set(re.findall(r"--[\w-]+", dark))


def test_colours_are_variables() -> None:
    rules = STYLE.partition("*, *::before")[2]
    assert re.findall(r"#[0-9a-fA-F]{3,8}\b(?=[;\s])", rules) == []


def test_nothing_is_loaded_from_elsewhere() -> None:
    texts = [
        path.read_text() for path in FOLDER.rglob("*.*") if path.suffix in (".html", ".css", ".js")
    ]
    assert len(texts) > 10
    for text in texts:
        assert not re.search(r"(?:src|href|url|import|fetch)\W{1,3}(?:https?:)?//", text)
        assert "@import" not in text


def test_motion_is_asked_for() -> None:
    before, _, after = STYLE.partition("@media (prefers-reduced-motion: no-preference)")
    assert after
    for word in ("transition", "animation", "scroll-behavior: smooth"):
        assert word not in before
