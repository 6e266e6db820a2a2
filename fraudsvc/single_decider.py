"""Decides and writes one payment: in one kernel call where its score alone has a say.

Owns which payments can be decided so, and the memory of one decision. The bytes are the same either
way: what a rule holds for, or a list may have, is decided and written step by step, as what has no
model is. Must not know a log.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from fraud.v1 import decision_pb2
from numba import njit
from numpy.typing import NDArray

from featurizer.features import OPS, SCHEMA_VERSION
from featurizer.records import RECORD, REQUEST_WORD
from fraudsvc.answers import GAP, Stamp, Writer, versions_of, write_decision
from fraudsvc.assess import PROBABILITY, assess
from fraudsvc.calls import Steps
from fraudsvc.decide import Workspace, decide
from fraudsvc.kernel_clock import monotonic_ns
from fraudsvc.payment import Payment
from fraudsvc.policy import APPROVE, DECLINE, REVIEW, Policy
from fraudsvc.rungs import FULL, NO_CAUSE
from trainer.bundle import Bundle

_NO_REASONS = b""


class Told(NamedTuple):
    """What the shell says of a payment that is to be decided.

    The trace id and the origin, as in ``Stamp``; the log's position; when its call arrived, ns of
    the monotonic clock; its steps until now; whether the decision is to be kept.
    """

    trace_id: bytes
    origin: bytes
    log_position: int
    arrival_ns: int
    steps: Steps
    named: bool


@njit(cache=True)
def _decide(words, space, judge, limits, writer, texts, told):  # type: ignore[no-untyped-def]
    """Write the Decision on the record of ``words`` int64[1, n]; return as ``write_decision``.

    Its beginning is -1 where a rule holds, and nothing has changed then but the record's marks.
    """
    records = words.reshape(words.size).view(RECORD)
    rows, lines, vector, parts, figures, body, reasons = space
    model, knots, table = judge
    out, key, traces = writer
    data, versions, trace, origin = texts
    position, received_ms, named, arrival, since, accepted, loaded = told
    size, fired = assess(
        rows, records, OPS, lines, vector, model, knots, parts, figures, body, reasons, table
    )
    if fired:
        return -1, 0, 0
    outcome = APPROVE
    if figures[PROBABILITY] >= limits[1]:
        outcome = DECLINE
    elif figures[PROBABILITY] >= limits[0]:
        outcome = REVIEW
    request = records[0].request
    return write_decision(
        out, data, body, reasons, figures, _NO_REASONS, versions, trace, origin, key, traces,
        (
            outcome, FULL, NO_CAUSE, size, request, position, received_ms,
            monotonic_ns() - arrival, named, since, accepted, loaded,
        ),
    )  # fmt: skip


class _Judge(NamedTuple):
    """A bundle and a policy, and what the kernel is given of them."""

    bundle: Bundle
    policy: Policy
    arrays: tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
    limits: tuple[float, float] | None
    versions: bytes

    @classmethod
    def of(cls, bundle: Bundle, policy: Policy) -> _Judge:
        own = (bundle.thresholds.review, bundle.thresholds.decline)
        return cls(
            bundle, policy, (bundle.model.array, bundle.calibration.knots, policy.table),
            policy.limits(own),
            versions_of(bundle.model_version, policy.version, SCHEMA_VERSION),
        )  # fmt: skip


class SingleDecider:
    """Decides one payment at a time, of states that are in ``rows`` int64[entities, ROW_WORDS].

    ``key`` uint64[2] is the hasher's, ``seed`` where new trace ids begin (0 to 2**64 - 1).
    """

    def __init__(self, key: NDArray[Any], seed: int, monotonic_ns: Callable[[], int]) -> None:
        space = self._space = Workspace()
        self.rows = space.rows
        self._arrays = (
            space.rows, space.lines, space.vector, space.parts, space.figures, space.body,
            space.reasons,
        )  # fmt: skip
        self._writer = Writer(key, seed)
        self._monotonic_ns = monotonic_ns
        self._judge: _Judge | None = None

    def decide(
        self,
        payment: Payment,
        seen: NDArray[Any],
        judges: tuple[Bundle | None, Policy],
        rung: decision_pb2.Rung,
        cause: decision_pb2.RungCause,
        told: Told,
    ) -> tuple[bytes, bytes]:
        """Return the bytes of the Decision and of the Assessment in it.

        ``seen`` RECORD[1] is the payment's record, or what of it is to be seen. Sets the marks of
        the record.
        """
        bundle, policy = judges
        if rung == FULL and bundle is not None:
            written = self._at_once(payment, bundle, policy, told)
            if written is not None:
                return written
        space = self._space
        draft = decide(payment, seen, space, bundle, policy, rung, cause)
        if seen is not payment.record:
            payment.record["flags"] = seen["flags"]
        stamp = Stamp(
            payment.ids.item(REQUEST_WORD), told.trace_id, told.log_position, payment.received_ms,
            self._monotonic_ns() - told.arrival_ns, told.origin, told.named, *told.steps,
        )  # fmt: skip
        return self._writer.write(
            draft, stamp, payment.data, space.body, space.reasons, space.figures
        )

    def _at_once(
        self, payment: Payment, bundle: Bundle, policy: Policy, told: Told
    ) -> tuple[bytes, bytes] | None:
        """Decide and write; return None where more than the score has a say."""
        judge, data = self._judge, payment.data
        if judge is None or judge.bundle is not bundle or judge.policy is not policy:
            judge = self._judge = _Judge.of(bundle, policy)
        if judge.limits is None or policy.may_list(data):
            return None
        trace_id, origin, position, arrival_ns, steps, named = told
        writer = self._writer.memory(len(data) + len(origin))
        begin, end, assessed = _decide(
            payment.ids, self._arrays, judge.arrays, judge.limits, writer,
            (data, judge.versions, trace_id, origin),
            # Without names: a kernel takes 2 µs to recognise a tuple that has them.
            (position, payment.received_ms, named, arrival_ns, *steps),
        )  # fmt: skip
        if begin < 0:
            return None
        return writer[0][begin:end].tobytes(), writer[0][GAP:assessed].tobytes()
