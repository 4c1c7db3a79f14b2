"""Mask secrets in URLs, texts and command lines, so that no password reaches a screen, a log or a
file.

A URL that cannot be parsed safely is shown as ``postgresql://***``. It is better to show too
little.
"""

import re
import shlex
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

MASK = "***"
STORAGE_VARIABLE = "PRUNESEARCH_STORAGE"
"""Environment variable that ``--storage`` takes its default from."""
CACHE_VARIABLE = "PRUNESEARCH_CACHE"
"""Environment variable that ``--cache`` takes its default from."""
_VARIABLES = {"--storage": STORAGE_VARIABLE, "--cache": CACHE_VARIABLE}

# Of a database URL only these parameters are shown: a driver may take a secret by a name that we do
# not know.
_SHOWN = frozenset(
    "application_name channel_binding client_encoding connect_timeout dbname gssencmode host "
    "hostaddr keepalives "
    "keepalives_idle load_balance_hosts mode port require_auth service sslmode "
    "target_session_attrs timeout uri "
    "user".split()
)
_SECRET_NAME = (
    r"[\w-]*(?:password|passwd|passphrase|passfile|secret|credential|api_?key|auth_?key"
    r"|(?:_|access|auth)token)"
)
_QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
# name=value; 'name': 'value', as in a dict or JSON; and the tokens of the hub and of our
# service, which are known by their look.
_SECRET = re.compile(
    rf"(?i)(?<![\w-])(-*{_SECRET_NAME})"
    rf"(?:(\s*=\s*)(?:{_QUOTED}|[^\s&;,'\")]+)|(['\"]\s*:\s*)(?:{_QUOTED}))"
)
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}|\bps_[A-Za-z0-9_-]{32,}|(?<=\bBearer )[^\s'\",]+")
_WEB = (
    "http",
    "https",
    "ftp",
    "s3",
    "gs",
    "hf",
    "file",
)  # not databases: only secret parameters are hidden
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_TAIL = "'\"`)]}>,;.:"  # these characters end a sentence, but not a URL


def masked_url(url: str) -> str:
    """Return a URL without its password and secret parameters.

    Parts that cannot be parsed safely are left out.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        return MASK
    try:
        parts = urlsplit(f"x://{rest}")
    except ValueError:  # brackets that do not match
        return f"{scheme}://{MASK}"
    # After sqlite:/// comes a path, in which @ and # are letters like others.
    local = scheme.partition("+")[0] == "sqlite" and not parts.netloc
    user_info, _, host = parts.netloc.rpartition("@")
    if not local and (
        "@" in user_info + parts.path + parts.query + parts.fragment or not _is_host(host)
    ):
        return f"{scheme}://{MASK}"
    user, colon, _ = user_info.partition(":")
    shown = f"{scheme}://"
    if user_info:
        if scheme.lower() in _WEB and not colon:
            user = MASK  # https://TOKEN@host
        shown += f"{user}:{MASK}@" if colon else f"{user}@"
    shown += host + parts.path
    if parts.query:
        pairs = [_shown_pair(pair, web=scheme.lower() in _WEB) for pair in parts.query.split("&")]
        shown += "?" + "&".join(pairs)
    if parts.fragment:
        shown += f"#{parts.fragment}" if local or scheme.lower() in _WEB else f"#{MASK}"
    return shown


def _is_host(text: str) -> bool:
    """Return whether a text is ``host:port``, or several of them.

    If not, a password may contain a character that ends the host of a URL.
    """
    hosts = re.sub(r"\[[0-9A-Fa-f:.%]*\]", "6", text).split(",")
    return all(re.fullmatch(r"[^:\s]*(?::\d*)?", host) for host in hosts)


def _shown_pair(pair: str, *, web: bool) -> str:
    """Return a parameter of a URL. Its value is hidden unless it is known to be harmless."""
    name, equals, value = pair.partition("=")
    if web:
        secret = (
            re.fullmatch(rf"(?i){_SECRET_NAME}|token|key|sig|signature", unquote(name)) is not None
        )
    else:
        secret = name not in _SHOWN or ":" in re.sub(r":\d+(?=,|$)", "", value)
        if not re.fullmatch("[a-z_]*", name):  # no driver's: the rest of a password with an & in it
            name = MASK
    if not secret:
        return pair
    # Without "=" the whole pair may be the secret.
    return f"{name}={MASK}" if equals else MASK


def masked_text(text: str) -> str:
    """Return a text, such as a library's error message, without the secrets of its URLs and
    settings.
    """
    found: list[str] = []
    at = 0
    while match := _SCHEME.search(text, at):
        found.append(text[at : match.start()])
        end = match.start() + len(text[match.start() :].split(maxsplit=1)[0])
        url = text[match.start() : end].rstrip(_TAIL)
        masked = masked_url(url)
        end = match.start() + len(url)
        last_at = text.rfind("@", end)
        if "@" not in url and masked.endswith(f"://{MASK}") and last_at > 0:
            end = last_at + 1  # a password with a blank in it: hide everything up to the @
            masked += "@"
        found.append(masked)
        at = end
    found.append(text[at:])
    return _without_settings("".join(found))


def _without_settings(text: str) -> str:
    """A text without the secrets that stand in it under their names, or alone."""
    return _TOKEN.sub(MASK, _SECRET.sub(rf"\1\2\3{MASK}", text))


def printable(text: str) -> str:
    """Escape characters that break lines or control a terminal.

    Names of files and studies may contain them.
    """
    letters = []
    for letter in text:
        letters.append(letter if letter.isprintable() else repr(letter)[1:-1])
    return "".join(letters)


def masked(value: str) -> str:
    """Return the value of an option without secrets.

    It may be a URL, ``DIR,URL`` or something else.
    """
    match = re.search(rf"(?:^|,|=)({_SCHEME.pattern})", value)
    if match is None:
        return _without_settings(value)
    return value[: match.start(1)] + masked_url(value[match.start(1) :])


def pasted(value: str, variable: str) -> str:
    """Return a location as a shell word, for a command that the user can paste.

    Args:
        value: location as given, or masked already.
        variable: environment variable that replaces a location with a secret.
    """
    if MASK in value or masked(value) != value:
        return f'"${variable}"'
    return shlex.quote(value)


def command(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Return a command line that can be pasted and contains no secret.

    Returns:
        The command, and the environment variables that replace secrets in it.
    """
    words: list[str] = []
    before = ""
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if before in _VARIABLES:
            words.append(pasted(argument, _VARIABLES[before]))
        elif equals and option in _VARIABLES:
            words.append(f"{option}={pasted(value, _VARIABLES[option])}")
        else:
            words.append(shlex.quote(masked(argument)))
        before = argument
    line = " ".join(words)
    return line, [name for name in _VARIABLES.values() if f'"${name}"' in line]
