"""Renders the templates: one Jinja2 environment, and how numbers, times and names are shown.

Everything that is printed is escaped by Jinja2. Names, notes and log lines come from users. The
filter `visible` also shows characters that would be invisible, or that would turn the direction of
the text around them.
"""

import math
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from prunesearch.runtime.masking import printable
from prunesearch.runtime.version import __version__
from prunesearch.service.web.charts import short, size
from prunesearch.units import plural

FOLDER = Path(__file__).parent
STATIC = FOLDER / "static"
"""Folder of the style sheet, the script and the icon."""
MISSING = "–"
"""What is shown for a figure that is not known."""


def visible(value: object) -> str:
    """Return a text with characters that are invisible as escapes, such as ``\\u202e``."""
    return printable(str(value))


def breakable(value: object) -> Markup:
    """Return `visible` of a text. A line may end after each comma, as in a list of layers."""
    parts = visible(value).split(",")
    return Markup(",<wbr>").join(parts)


def block(value: object) -> str:
    """Return `visible` of a text of several lines. Line breaks and tabs stay."""
    # Control characters other than line breaks and tabs are shown as escapes.
    lines = str(value).replace("\r\n", "\n").split("\n")
    shown = []
    for line in lines:
        shown.append("\t".join(visible(part) for part in line.split("\t")))
    return "\n".join(shown)


def number(value: float | int | None, digits: int | None = None) -> str:
    """Return a number with four significant digits, or with a number of decimals."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    if isinstance(value, int):
        return f"{value:,}"
    return short(value) if digits is None else f"{value:,.{digits}f}"


def uncertain(value: float, error: float) -> str:
    """Return a number with its standard error, which has two significant digits."""
    if not math.isfinite(error) or not math.isfinite(value) or error <= 0:
        return number(value)
    # As many decimals as the error has with two significant digits.
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:,.{digits}f} ± {error:,.{digits}f}"


def size_or_missing(value: float | None) -> str:
    """Return bytes as people write them: ``1.5 GiB``."""
    return MISSING if value is None else size(value)


def duration(seconds: float | None) -> str:
    """Return a duration as people write it: ``3 min 12 s``."""
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    # Two units are enough at any length.
    whole = int(seconds)
    days, hours = divmod(whole // 3600, 24)
    minutes, rest = whole // 60 % 60, whole % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s"


def moment(at: float | datetime | None) -> Markup:
    """Return a `time` element. The script shows it in the zone of the browser; without it, UTC.

    Args:
        at: time in seconds since 1970, or with its zone. None: it is not known.
    """
    if at is None:
        return Markup(MISSING)
    if isinstance(at, datetime):
        at = at.timestamp()
    try:
        when = datetime.fromtimestamp(at, UTC)
    except (ValueError, OverflowError, OSError):
        return Markup(MISSING)
    exact, shown = when.strftime("%Y-%m-%dT%H:%M:%SZ"), when.strftime("%Y-%m-%d %H:%M UTC")
    return Markup('<time datetime="{}">{}</time>').format(exact, shown)


def segment(value: object) -> str:
    """Return a text as one part of a URL's path."""
    return quote(str(value), safe="")


@lru_cache(maxsize=1)
def environment() -> jinja2.Environment:
    """Return the environment of the templates. It escapes what it prints."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    # Templates print through these, and compute nothing themselves.
    made.filters.update(
        visible=visible,
        block=block,
        breakable=breakable,
        number=number,
        size=size_or_missing,
        duration=duration,
        moment=moment,
        segment=segment,
        plural=plural,
    )
    made.globals["version"] = __version__
    return made


def render(template: str, **values: object) -> str:
    """Render a template to HTML.

    Args:
        template: file name of the template.
        values: what the template prints.
    """
    return environment().get_template(template).render(**values)
