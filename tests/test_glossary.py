"""No private words in names, comments, docstrings, messages and pages of the package."""

import re
from pathlib import Path

import pytest

from tests.support.glossary import (
    EVERY_PART,
    PHRASES,
    WHOLE_NAMES,
    Finding,
    findings,
    in_module,
    in_page,
    is_private_name,
    parts_of,
    private_phrases,
    replaced_words,
)
from tests.support.paths import REPOSITORY

# Words of the glossary whose private meaning was the name of a module or of an option: neither
# exists any more.
EARLIER = re.compile(r"form|caution|sealed|alarms|--weights \w+")
GONE = {"fields": "prunesearch/models/fields.py", "host": "memory|host", "stream": "host|stream"}


def test_the_package_uses_no_private_word() -> None:
    found = findings(REPOSITORY)
    assert not found, "see the glossary in prunesearch/README.md:\n" + "\n".join(map(str, found))


def test_tests_and_benchmarks_use_no_private_word() -> None:
    found: list[Finding] = []
    for folder in ("tests", "benchmarks"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            if path.stem not in ("glossary", "test_glossary"):
                found += in_module(path, REPOSITORY)
    for path in sorted((REPOSITORY / "benchmarks").rglob("*.md")):
        found += in_page(path, REPOSITORY)
    # Tests of what earlier versions wrote, and of what users typed then, name it.
    left = [finding for finding in found if not EARLIER.fullmatch(finding.word)]
    assert not left, "see the glossary in prunesearch/README.md:\n" + "\n".join(map(str, left))


def test_every_replaced_word_of_the_glossary_has_a_rule() -> None:
    words = replaced_words(REPOSITORY)
    assert {"desk", "store", "give back", "dense answers"} <= words
    for word in words - GONE.keys():
        named = is_private_name(word, "recovery/output_projections.py") or any(
            re.fullmatch(rule.pattern, word.capitalize()) or re.fullmatch(rule.pattern, word)
            for rule in WHOLE_NAMES
        )
        said = any(re.search(pattern, f"--{word.replace(' ', ' ')} {word}") for pattern in PHRASES)
        assert word in EVERY_PART or named or said or word == "weights memory", word


@pytest.mark.parametrize(
    ("name", "place", "private"),
    [
        ("LeasedDesk", "cache/x.py", True),
        ("leased_backends", "cache/x.py", False),
        ("tiers", "cache/x.py", True),
        ("frontier", "algorithms/x.py", False),  # no part of its own
        ("SingleFlight", "cache/x.py", False),
        ("flight", "cache/x.py", True),
        ("store", "cache/x.py", True),
        ("store_constraints", "samplers/x.py", False),  # the verb
        ("EvaluationStore", "pipeline/x.py", True),
        ("store", "cache/hardening.py", False),  # a method of diskcache
        ("form", "export/x.py", True),
        ("transform", "samplers/x.py", False),
        ("trust_remote_code", "cli/x.py", False),
        ("trust", "algorithms/x.py", True),
        ("writer", "export/x.py", False),
        ("writer", "recovery/gap_fitting.py", True),
        ("Wanted", "studies/x.py", True),
        ("wanted", "cache/x.py", False),
    ],
)
def test_a_name_is_private_by_its_parts_and_its_folder(
    name: str, place: str, private: bool
) -> None:
    assert is_private_name(name, place) == private


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A process leases a key before it computes it.", []),
        ("The tiers of the store.", ["tiers", "the store"]),
        ("They store the values.", []),
        ("behind this, the value is no number", ["behind", "is no"]),
        ("There is no such study, and it is no longer there.", []),
        ("single-flight: one computes", []),
        ("It gives back the lease.", ["gives back"]),
    ],
)
def test_phrases_are_found_in_their_private_meaning_only(text: str, found: list[str]) -> None:
    assert sorted(private_phrases(text, "x.py")) == sorted(found)


def test_names_are_split_at_underscores_and_capitals() -> None:
    assert parts_of("SQLTierOf_the_HTMLPage2") == ["sql", "tier", "of", "the", "html", "page", "2"]


def test_names_comments_messages_and_pages_are_read_and_stored_keys_are_not(tmp_path: Path) -> None:
    package = tmp_path / "prunesearch"
    package.mkdir()
    module, page = package / "x.py", package / "README.md"
    module.write_text('desk = 1  # the shelf\nraise KeyError(f"a stone")\nDATA["basis"] = 2\n')
    page.write_text("# Page\nthe rival\n## Glossary\n| a | b | rival |\n## More\na tally\n")
    words = [finding.word for finding in in_module(module, tmp_path)]
    assert words.count("desk") == 1
    assert {"the shelf", "stone"} <= set(words) or {"shelf", "stone"} <= set(words)
    assert "basis" not in words
    assert [(finding.line, finding.word) for finding in in_page(page, tmp_path)] == [
        (2, "rival"),
        (6, "tally"),
    ]
