"""Every reader of bytes from outside for a second or two; `python -m tests.fuzz` for longer."""

from __future__ import annotations

import time

import pytest

from tests.conftest import SEED
from tests.fuzz.run import HangError, feed, within
from tests.fuzz.targets import TARGETS, Target

SECONDS = 1.0


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_its_own_error_comes_out(name: str) -> None:
    fed = feed(name, SECONDS, SEED)
    assert fed.inputs > 10


def test_a_reader_that_raises_anything_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(data: bytes) -> None:
        if b"\xff" in data:
            raise KeyError("a bug")
        raise ValueError("its own error")

    def taking(data: bytes) -> None:
        if data != b"good":
            read(data)

    monkeypatch.setitem(TARGETS, "broken", Target(taking, lambda: [b"good"], (ValueError,)))
    with pytest.raises(KeyError, match="a bug"):
        feed("broken", 30.0, SEED)


def test_a_hang_is_found() -> None:
    def hang() -> None:
        with within(1):
            time.sleep(60)

    with pytest.raises(HangError):
        hang()
