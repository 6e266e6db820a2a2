"""Feeds a target for some seconds and keeps to bounds: of memory, and of time for each input.

Inputs come from Hypothesis: bytes at will, or a good sample after a few edits. Hypothesis makes a
finding small and prints it; the seed of a batch is in its name.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import time
from collections.abc import Iterator
from typing import NamedTuple

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, Target, interesting

INPUT_S_MAX = 10
GROWTH_BYTES_MAX = 512 << 20
BATCH = 200
BYTES_MAX = 8_192
EDITS_MAX = 6
_PIECES = list(interesting())


class Fed(NamedTuple):
    """How many inputs a target was fed, and by how much the process grew."""

    inputs: int
    refused: int
    grown_bytes: int


class HangError(Exception):
    """One input took longer than INPUT_S_MAX."""


@st.composite
def edited(draw: st.DrawFn, samples: list[bytes]) -> bytes:
    """Return a sample after a few edits: bytes changed, put in, left out, doubled, cut."""
    data = bytearray(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(1, EDITS_MAX))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        size = draw(st.integers(1, 16))
        kind = draw(st.integers(0, 5))
        if kind == 0 and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == 1:
            data[at : at + size] = draw(st.binary(max_size=16))
        elif kind == 2:
            data[at:at] = draw(st.sampled_from(_PIECES))
        elif kind == 3:
            del data[at : at + size]
        elif kind == 4:
            data[at:at] = data[at : at + 64 * size]
        else:
            del data[at:]
    return bytes(data[: 4 * BYTES_MAX])


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise HangError in the main thread after some seconds."""

    def stop(*_: object) -> None:
        raise HangError(f"one input took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _grown() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def feed(name: str, seconds: float, first_seed: int) -> Fed:
    """Feed a target for some seconds. Raises what it should not have, with the input."""
    target: Target = TARGETS[name]
    samples = list(target.samples())
    for sample in samples:
        target.read(sample)  # good ones are taken, and kernels are compiled
    before, end_s = _grown(), time.monotonic() + seconds
    counts = [0, 0]

    def one(data: bytes) -> None:
        counts[0] += 1
        try:
            with within(INPUT_S_MAX):
                target.read(data)
        except target.error:
            counts[1] += 1

    number = first_seed
    while time.monotonic() < end_s:
        inputs = st.one_of(edited(samples), edited(samples), st.binary(max_size=BYTES_MAX))
        batch = settings(
            max_examples=BATCH, database=None, deadline=None, phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        seed(number)(batch(given(inputs)(one)))()
        number += 1
    grown = _grown() - before
    assert grown < GROWTH_BYTES_MAX, f"{name} grew by {grown >> 20} MiB"
    return Fed(counts[0], counts[1], grown)
