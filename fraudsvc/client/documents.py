"""Reads transactions from JSON: one a line, a list of them, or a single one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, TextIO

from fraud.v1 import transaction_pb2
from google.protobuf import json_format

from fraudsvc.cardnumbers import looks_like_card_number

WHOLE_CHARACTERS_MAX = 64 << 20  # of a file that is not of lines, which is read as a whole


def documents(file: TextIO) -> Iterator[Any]:
    """Yield what each line, or each item of the list, holds; an Exception for a bad line.

    Raises ValueError for a file that is neither.
    """
    first = next((line for line in file if line.strip()), "")
    if not first:
        return
    try:
        found = _parsed(first)
    except json.JSONDecodeError:
        found = _whole(first, file)
    except ValueError as error:
        found = error
    if isinstance(found, list):
        yield from found
        return
    yield found
    for line in file:
        if line.strip():
            yield _line(line)


def _whole(first: str, file: TextIO) -> Any:
    text = first + file.read(WHOLE_CHARACTERS_MAX)
    if file.read(1):
        raise ValueError(f"more than {WHOLE_CHARACTERS_MAX} characters: put one transaction a line")
    try:
        return _parsed(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error.msg} in line {error.lineno}") from None


def _line(line: str) -> Any:
    try:
        return _parsed(line)
    except json.JSONDecodeError as error:
        return ValueError(f"it is not JSON: {error.msg} at character {error.pos}")
    except ValueError as error:
        return error


def _parsed(text: str) -> Any:
    """Return what the JSON says. Raises ValueError, which JSONDecodeError is."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def transaction_of(document: Any) -> transaction_pb2.Transaction:
    """Return a document as a transaction. Raises ValueError, whose text holds no card number."""
    if isinstance(document, ValueError):
        raise document
    if not isinstance(document, dict):
        raise ValueError("a transaction is a JSON object")
    try:
        return json_format.ParseDict(document, transaction_pb2.Transaction())
    except (json_format.ParseError, RecursionError) as error:
        text = str(error)
        raise ValueError("not shown" if looks_like_card_number(text) else text) from None
