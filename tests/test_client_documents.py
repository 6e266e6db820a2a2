"""Files of transactions for `client score`: one a line, or one list."""

from __future__ import annotations

import io

import pytest

from fraudsvc.client.documents import documents

DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("", []),
        ('{"a": 1}\n\n{"b": 2}\n', [dict, dict]),
        ('[{"a": 1}, 2]', [dict, int]),
        ('{"a": 1}\nno\n{"b": 2}', [dict, ValueError, dict]),
        (DEEP, [ValueError]),
        ("{}\n" + DEEP, [dict, ValueError]),
    ],
)
def test_each_line_or_item_is_one_and_a_bad_line_is_its_own(text: str, kinds: list[type]) -> None:
    assert [type(each) for each in documents(io.StringIO(text))] == kinds


@pytest.mark.parametrize("text", ["{\n", '{\n"a": ' + DEEP])
def test_a_file_that_is_neither_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="it is "):
        list(documents(io.StringIO(text)))
