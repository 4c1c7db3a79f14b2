"""The words that the package does not use, and where each of them is forbidden.

The glossary in `prunesearch/README.md` names the standard words, and in its last column private
words that they replaced. Most of those words are ordinary English elsewhere (to store a value, a
web form, host and port), so each has a rule that bans its private meaning only. `tests/test_glossary`
holds the count at zero, and `benchmarks.structure` reports it.

A name is split at underscores and capitals: `LeasedBackend` has the parts leased and backend.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ANYWHERE = ("",)
EVERY_PART = (
    "desk", "flight", "shelf", "shelves", "bench", "wish", "stone", "ledger", "tally", "sheet",
    "aim", "standing", "lump", "census", "bridge", "rival", "tier", "alarm", "anatomy", "seal",
    "sealed", "unseal", "claim", "mine", "basis", "behind", "mend", "dear", "whoever", "family",
    "families", "promise", "caution", "fault",
)  # fmt: skip
"""Words that no name may have as a part, in the singular or in the plural."""


@dataclass(frozen=True)
class WholeName:
    """A name that is forbidden in some folders.

    Attributes:
        pattern: regular expression for the whole name.
        folders: beginnings of the paths in the package where it is forbidden.
        instead: what to write instead.
    """

    pattern: str
    folders: tuple[str, ...]
    instead: str


WHOLE_NAMES = (
    WholeName(r"_?store|[A-Z]\w*Store|(\w*_)?stores", ANYWHERE, "cache"),
    WholeName(r"_?aside|put_aside", ANYWHERE, "spilled"),
    WholeName(r"(?i:(\w*_)?forms?)", ANYWHERE, "encoding, or export_format"),
    WholeName(r"\w*(Chosen|Wanted)|CHOSEN|WANTED", ANYWHERE, "Selection, SelectionCriteria"),
    WholeName(r"trust|_trust", ("algorithms/", "samplers/"), "min_loo_correlation"),
    WholeName(
        r"(?i:_?writers?)",
        ("recovery/output_projections", "recovery/gap_fitting"),
        "output_projection",
    ),
    WholeName(r"(?i:work|work_folder)", ("recovery/",), "run_folder"),
    WholeName(r"fields", ("models/config_edits",), "config edits"),
)
PHRASES = (
    *(rf"\b{word}s?\b" for word in (
        "desk", "shelf", "bench", "wish", "stone", "ledger", "tally", "lump", "census", "rival",
        "tier", "alarm", "anatomy", "seal", "unseal", "mend", "dear", "aim", "claim", "bridge",
    )),
    r"\b(sealed|shelves|mended|whoever)\b",
    r"(?<!--)\bbehind\b",  # not the option --behind-proxy
    r"(?<!single-)(?<!in-)\bflights?\b",
    r"\bthe (basis|sheet)\b",
    r"\bso many\b",
    r"(?<![Tt]here )\b(is|are) no\b(?! longer)",
    r"\b(give|gives|given|gave) back\b",
    r"\b(the|a|this|that|each|every|evaluation|shared|both|one|into|in|no) stores?\b(?! \w+s\b)",
    r"\bfault points?\b",
    r"\bdense (model's )?answers?\b",
    r"\bwork folders?\b",
    r"--weights (memory|host|stream)\b",
    r"(?<!--)\bfamil(y|ies)\b",  # the option of a benchmark names a group of landscapes
    r"\boutput writers?\b",
    r"\bput aside\b|\bthe shelf\b",
)  # fmt: skip
"""Regular expressions for what comments, docstrings, messages and pages do not say."""

# Old names that are still read: stored data, and names that are accepted with a warning.
ALLOWED = (
    ("cache/migrations/", "sealed"), ("cache/migrations/", "alarm"), ("cache/incidents.py", "alarm"),
    ("cache/hardening.py", "store"), ("export/gguf_tokenizer.py", "behind"),
    ("samplers/", "form"),  # the earlier name of `encoding`, accepted with a warning
    ("algorithms/planner.py", "caution"), ("algorithms/planner.py", "trust"),  # the same
    ("service/http/", "form"), ("service/web/", "form"),  # of a web page
    ("", "single_flight"), ("", "SingleFlight"),
)  # fmt: skip
"""Pairs of a path's beginning and a name, or a word, that may stand there."""


@dataclass(frozen=True)
class Finding:
    """A private word and its place.

    Attributes:
        path: path in the repository.
        line: number of the line.
        word: the word, or the name that has it as a part.
    """

    path: str
    line: int
    word: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.word}"


def parts_of(name: str) -> list[str]:
    """Split a name at underscores and capitals, in lower case."""
    return [part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]


def is_private_name(name: str, place: str) -> bool:
    """Return whether a name is, or has a part that is, a private word.

    Args:
        name: name in the code.
        place: path of the module below the package, such as ``cache/keys.py``.
    """
    singular = {part.removesuffix("s") for part in parts_of(name)} | set(parts_of(name))
    if singular & set(EVERY_PART) and not _is_allowed(name, place, EVERY_PART):
        return True
    for rule in WHOLE_NAMES:
        if place.startswith(rule.folders) and re.fullmatch(rule.pattern, name):
            return not _is_allowed(name, place, ())
    return False


def _is_allowed(name: str, place: str, words: tuple[str, ...]) -> bool:
    for beginning, allowed in ALLOWED:
        if place.startswith(beginning) and allowed in (name, name.strip("_")):
            return True
        # A name with an allowed word in it, such as a test of an old schema.
        if words and beginning and place.startswith(beginning) and allowed in name.lower():
            return True
    return False


def private_phrases(text: str, place: str) -> Iterator[str]:
    """Yield the private words and phrases of a text."""
    for pattern in PHRASES:
        for match in re.finditer(pattern, text, re.IGNORECASE):
            found = match.group()
            allowed = (
                word for beginning, word in ALLOWED if beginning and place.startswith(beginning)
            )
            if not any(word in found.lower() for word in allowed):
                yield found


def in_module(path: Path, root: Path) -> Iterator[Finding]:
    """Yield the private words in the names, comments, docstrings and messages of a module."""
    text = path.read_text()
    shown, place = str(path.relative_to(root)), _place(path, root)
    stored = _stored_keys(text)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        line = token.start[0]
        if token.type == tokenize.NAME and is_private_name(token.string, place):
            yield Finding(shown, line, token.string)
        elif token.type == tokenize.COMMENT or (
            token.type == tokenize.STRING and token.string.strip("rfbRFB\"'") not in stored
        ):
            # Words are separated by one space, also across the lines of a paragraph.
            for phrase in private_phrases(" ".join(token.string.split()), place):
                yield Finding(shown, line, phrase)


def _stored_keys(text: str) -> set[str]:
    """Return the strings of a module that are single words: keys of stored data, and names."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            continue
        if re.fullmatch(r"[\w.-]+", node.value):
            found.add(node.value)
    return found


def in_page(path: Path, root: Path) -> Iterator[Finding]:
    """Yield the private words of a Markdown page. The glossary may name them."""
    shown, in_glossary = str(path.relative_to(root)), False
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.startswith("## "):
            in_glossary = line == "## Glossary"
        if not in_glossary:
            for phrase in private_phrases(line, _place(path, root)):
                yield Finding(shown, number, phrase)


def findings(root: Path) -> list[Finding]:
    """Return all private words in the package of a checkout and in its pages."""
    found: list[Finding] = []
    package = root / "prunesearch"
    for path in sorted(package.rglob("*.py")):
        found += in_module(path, root)
    for path in [
        root / "README.md",
        root / "storage" / "README.md",
        *sorted(package.rglob("*.md")),
    ]:
        found += in_page(path, root)
    return found


def _place(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix().removeprefix("prunesearch/")


def replaced_words(root: Path) -> set[str]:
    """Return the words in the glossary's column "not"."""
    _, _, glossary = (root / "prunesearch" / "README.md").read_text().partition("## Glossary")
    words: set[str] = set()
    for line in glossary.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == 3 and not line.startswith(("| word", "|--")):
            words.update(word.strip() for word in cells[2].split(",") if word.strip())
    return words
