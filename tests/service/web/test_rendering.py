"""How numbers, times and hostile names are shown."""

from datetime import UTC, datetime

import pytest

from prunesearch.service.web.rendering import (
    block,
    breakable,
    duration,
    environment,
    moment,
    number,
    segment,
    uncertain,
    visible,
)


def test_everything_that_is_printed_is_escaped() -> None:
    made = environment().from_string('<p title="{{ x }}">{{ x | visible }}</p>')
    text = made.render(x="<script>\"'&")
    assert text == '<p title="&lt;script&gt;&#34;&#39;&amp;">&lt;script&gt;&#34;&#39;&amp;</p>'
    for name in environment().list_templates():
        source = environment().loader.get_source(environment(), name)[0]  # type: ignore[union-attr]
        assert "safe }}" not in source.replace("|", " ").replace("  ", " "), name
        assert "autoescape" not in source, name
        assert "style=" not in source, name
        assert " on" not in [part[:3] for part in source.split("=")], name


def test_characters_that_turn_or_hide_text_are_shown_as_escapes() -> None:
    assert visible("a\u202egnp.exe\u200b\x1b[2J\n") == "a\\u202egnp.exe\\u200b\\x1b[2J\\n"
    assert visible("מודל 模型 é") == "מודל 模型 é"
    assert str(breakable("1,<b>,\u202e")) == "1,<wbr>&lt;b&gt;,<wbr>\\u202e"
    assert block("one\r\ntwo\tthree\x00") == "one\ntwo\tthree\\x00"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.25, "0.2 s"), (12.6, "13 s"), (192, "3 min 12 s"), (7300, "2 h 1 min"),
     (100_000, "1 d 3 h")],
)  # fmt: skip
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_a_time_has_its_exact_value_for_machines() -> None:
    shown = '<time datetime="2026-01-02T03:04:05Z">2026-01-02 03:04 UTC</time>'
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert str(moment(when.timestamp())) == shown
    assert str(moment(when)) == shown
    assert str(moment(None)) == str(moment(1e300)) == "–"


def test_numbers_and_their_errors() -> None:
    assert number(None) == number(float("nan")) == "–"
    assert number(12345) == "12,345"
    assert uncertain(0.37283, 0.008609) == "0.3728 ± 0.0086"
    assert uncertain(1459.75, 40.2) == "1,460 ± 40"
    assert uncertain(1.0, 0.0) == "1.000"


def test_parts_of_paths() -> None:
    assert segment('a/b?c#d é"') == "a%2Fb%3Fc%23d%20%C3%A9%22"
