"""Reads candidates from a reply of a language model. Only whole numbers are read.

A reply may be anything: prose, half a JSON text, an order to do something. Nothing of it is
evaluated, and no text of it is used.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

from prunesearch.runtime.json_values import Json

CANDIDATES = "candidates"
"""Key of the list of candidates in a reply."""
_MOST_NUMBER = 10**6
_MOST_STARTS = 200  # brackets that are tried as the beginning of a JSON text
_DEEPEST = 12  # levels of brackets in a reply
_CLOSING = {"{": "}", "[": "]"}

Numbers = Mapping[str, tuple[int, ...]]
"""Lists of whole numbers of a candidate, by name."""


def candidates_in(text: str, names: Sequence[str], most: int) -> tuple[list[Numbers], int]:
    """Return the candidates in a reply.

    Args:
        text: the reply.
        names: names of the lists that a candidate must have.
        most: most candidates that are read.

    Returns:
        The candidates, and the number of values in the reply that should be candidates and are not.
    """
    found: list[Numbers] = []
    invalid = 0
    # In a reply with objects, a list alone may be any part of an object that was cut off.
    bare = len(names) == 1 and "{" not in text
    for value in _values(text):
        for entry in _entries(value, names, bare):
            numbers = _numbers(entry, names, bare)
            if numbers is None:
                invalid += 1
            elif len(found) < most:
                found.append(numbers)
    if not found and not invalid:
        invalid = 1  # the reply as a whole
    return found, invalid


def _values(text: str) -> Iterator[Json]:
    """Yield the JSON values in a reply: the whole reply, or the outermost ones inside it."""
    # The usual case: the reply is JSON and nothing else.
    whole = _loaded(text.strip())
    if isinstance(whole, dict | list):
        yield whole
        return
    # Look for brackets that close. A reply that was cut off has complete candidates inside.
    at, tried = 0, 0
    while at < len(text) and tried < _MOST_STARTS:
        if text[at] not in _CLOSING:
            at += 1
            continue
        tried += 1
        end = _end_of(text, at)
        value = None if end is None else _loaded(text[at:end])
        if end is not None and value is not None:
            yield value
            at = end
        else:
            at += 1


def _end_of(text: str, start: int) -> int | None:
    """Return the position after the bracket that closes the one at `start`; None without one."""
    open_brackets: list[str] = []
    quoted = escaped = False
    for at in range(start, len(text)):
        letter = text[at]
        # Brackets inside quotes do not count.
        if escaped:
            escaped = False
        elif quoted:
            escaped, quoted = letter == "\\", letter != '"'
        elif letter == '"':
            quoted = True
        elif letter in _CLOSING:
            open_brackets.append(_CLOSING[letter])
            if len(open_brackets) > _DEEPEST:
                return None
        elif open_brackets and letter in "}]":
            if letter != open_brackets.pop():
                return None
            if not open_brackets:
                return at + 1
    return None


def _loaded(text: str) -> Json:
    """Return the JSON value of a text; None if it is not JSON."""
    try:
        value: Json = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return value


def _refuse(constant: str) -> NoReturn:
    """Refuse NaN and infinities, which JSON does not have."""
    raise ValueError(constant)


def _entries(value: Json, names: Sequence[str], bare: bool) -> Iterator[Json]:
    """Yield the values that should be candidates."""
    if isinstance(value, dict):
        if isinstance(value.get(CANDIDATES), list):
            yield from value[CANDIDATES]
        else:
            yield value
    elif isinstance(value, list) and (bare or any(isinstance(each, dict) for each in value)):
        # A list of candidates, or one candidate without its name.
        if bare and value and all(_number(each) is not None for each in value):
            yield {names[0]: value}
        else:
            yield from value


def _numbers(entry: Json, names: Sequence[str], bare: bool) -> Numbers | None:
    """Return the lists of a candidate; None if one is missing or holds something else."""
    if isinstance(entry, list) and bare:
        entry = {names[0]: entry}
    if not isinstance(entry, dict):
        return None
    found = {}
    for name in names:
        values = entry.get(name)
        if not isinstance(values, list):
            return None
        numbers = []
        for value in values:
            number = _number(value)
            if number is None:
                return None
            numbers.append(number)
        found[name] = tuple(numbers)
    return found


def _number(value: Json) -> int | None:
    """Return a whole number; None if the value is something else or far too large."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if abs(value) > _MOST_NUMBER or value != int(value):
        return None
    return int(value)
