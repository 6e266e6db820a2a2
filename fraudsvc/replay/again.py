"""A decision made again: from its vector, by the bundle and the policy that decided, to its bytes.

Owns what is equal and what is not, and what a decision is made again with. Must not know where
states, bundles or policies are found. Pure: the same arguments give the same verdicts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import NamedTuple

import numpy as np
from fraud.v1 import decision_pb2
from numpy.typing import NDArray

from featurizer.features import SCHEMA_VERSION
from featurizer.records import REQUEST_WORD
from fraudsvc.answers import Draft, Stamp, Writer, origin_of
from fraudsvc.assess import Sheet
from fraudsvc.decide import Drafts, Workspace, decide, decide_all
from fraudsvc.payment import Payment
from fraudsvc.policy import Policy
from fraudsvc.replay.cases import Case, Cases, Transactions
from fraudsvc.replay.compare import Comparer
from fraudsvc.replay.differences import (
    OF_SEVERAL_HOSTS,
    OTHER_STATES,
    STATE_CAUSES,
    Difference,
    cause_of,
    differences,
)
from fraudsvc.replay.states import Views, shown
from fraudsvc.replay.told import Told
from fraudsvc.rungs import RULES_ONLY
from trainer.bundle import Bundle


class GoneError(ValueError):
    """What decided is not to be had; the text says what, and why."""


class Judges(NamedTuple):
    """What decided, by its version. Raises GoneError."""

    bundle: Callable[[str], Bundle]
    policy: Callable[[str], Policy]


class Kind(Enum):
    """What came of making a decision again."""

    SAME = "same"
    DIFFERENT = "different"
    GONE = "cannot be reproduced"


class Verdict(NamedTuple):
    """A case, and what came of it; ``again`` are the bytes that were made, b"" for none."""

    case: Case
    kind: Kind
    cause: str = ""
    differences: tuple[Difference, ...] = ()
    again: bytes = b""

    @property
    def is_same(self) -> bool:
        """Whether the decision came out as it was, byte for byte."""
        return self.kind is Kind.SAME


class Judged(NamedTuple):
    """What came of cases that one bundle and one policy decided.

    ``by`` are the versions of schema, model and policy, ``told`` int64[n, Told.COLUMNS] what those
    decisions say that came out the same; ``others`` the verdicts on those that did not.
    """

    by: tuple[str, str, str]
    told: NDArray[np.int64]
    others: Sequence[Verdict]


class Replayer:
    """Makes decisions again and compares.

    ``key`` uint64[2] is the id hasher's, ``log_begins`` the oldest position that the log has. With
    ``is_shared`` the states' positions are those of updates that hosts share. ``have_named`` is
    that of FormerIds: an id of an earlier secret is taken over, as nobody could make it again.
    """

    def __init__(
        self,
        judges: Judges,
        key: NDArray[np.uint64],
        log_begins: int = 0,
        *,
        is_shared: bool = False,
        have_named: Callable[[str, int], bool] = lambda _id, _request: False,
    ) -> None:
        self._have_named = have_named
        self._log_begins = log_begins
        self._is_shared = is_shared
        self._judges = judges
        self._writer = Writer(key, 0)
        self._comparer = Comparer(key)
        self._sheet = Sheet(0)
        self._space = Workspace()

    def judge(self, views: Views) -> Iterator[Judged]:
        """Yield what came of cases that were decided with a model, those of one bundle together."""
        for rows, by in views.cases.groups():
            yield self._judge_group(views.rows(rows), by)

    def verdict(self, views: Views) -> Verdict:
        """Return the verdict on the one case that was seen."""
        [case] = views.cases
        if not views.are_as_logged[0]:
            return self.unmatched(case, views.versions[0])
        [judged] = self.judge(views)
        return next(iter(judged.others), Verdict(case, Kind.SAME, again=case.value))

    def judge_by_rules(self, cases: Cases) -> Iterator[Verdict]:
        """Yield a verdict for each case that was decided without a model."""
        records = shown(cases)
        for i, case in enumerate(cases):
            try:
                policy = self._judges.policy(case.by[2])
            except GoneError as error:
                yield Verdict(case, Kind.GONE, str(error))
                continue
            payment, cause = payment_of(case, records[i : i + 1]), case.cause
            made = decide(payment, payment.record, self._space, None, policy, RULES_ONLY, cause)
            space = self._space
            yield self._compared(case, payment, made, space.body, space.reasons, space.figures)

    def unmatched(self, case: Case, versions: NDArray[np.int64]) -> Verdict:
        """Return the verdict on a case whose states the log does not give."""
        found = cause_of_versions(case, versions, is_shared=self._is_shared)
        return self._verdict(case, *found)

    def _verdict(
        self, case: Case, cause: str, found: tuple[Difference, ...], again: bytes = b""
    ) -> Verdict:
        """Return the verdict on a case that came out different, which a log cut short explains."""
        if self._log_begins and cause in STATE_CAUSES:
            cause = f"the log begins at {self._log_begins}: what its states were made of is gone"
            return Verdict(case, Kind.GONE, cause, found, again)
        return Verdict(case, Kind.DIFFERENT, cause, found, again)

    def _judge_group(self, views: Views, by: tuple[str, str, str]) -> Judged:
        schema, model_version, policy_version = by
        try:
            if schema != SCHEMA_VERSION:
                raise GoneError(
                    f"it was decided with schema {schema}, this process has {SCHEMA_VERSION}"
                )
            bundle = self._judges.bundle(model_version)
            policy = self._judges.policy(policy_version)
        except GoneError as error:
            gone = [Verdict(case, Kind.GONE, str(error)) for case in views.cases]
            return Judged(by, views.cases.told[:0], gone)
        sheet = self._sheet = self._sheet.with_room(len(views.cases))
        sheet.appraise(views.vectors, views.records, views.versions, bundle, policy.table)

        def payment(row: int) -> Payment:
            return payment_of(views.cases[row], views.records[row : row + 1])

        drafts = decide_all(payment, Transactions(views.cases), sheet, bundle, policy)
        same = self._same(views, drafts)
        others = []
        for row in np.flatnonzero(~same).tolist():
            case = views.cases[row]
            draft = drafts.draft(row, case.rung, case.cause)
            parts = sheet.bodies[row], sheet.reasons[row], sheet.figures[row]
            others.append(self._compared(case, payment(row), draft, *parts))
        return Judged(by, views.cases.told[same], others)

    def _same(self, views: Views, drafts: Drafts) -> NDArray[np.bool_]:
        """Return bool[n]: which came out with the same bytes and marks, without parsing any."""
        cases = views.cases
        requests = np.ascontiguousarray(views.records["request"])
        values = cases.data, cases.starts, cases.lengths
        same = self._comparer.same(values, cases.told, drafts, requests, self._sheet)
        marked: NDArray[np.bool_] = cases.records["flags"] == views.records["flags"]
        return same & marked

    def _compared(
        self,
        case: Case,
        payment: Payment,
        draft: Draft,
        body: NDArray[np.uint8],
        reasons: NDArray[np.uint8],
        figures: NDArray[np.float64],
    ) -> Verdict:
        stamp = _stamp(case, payment)
        again, _ = self._writer.write(draft, stamp, payment.data, body, reasons, figures)
        again += case.value[case.told[Told.STEPS] : case.told[Told.STEPS_END]]
        said = case.decision.assessment.decision_id
        if self._have_named(said, stamp.request):
            named = decision_pb2.Decision.FromString(again).assessment.decision_id
            again = again.replace(named.encode(), said.encode(), 1)
        # Where nothing was known of any entity, the record that was seen is not the one on the log.
        flags = np.frombuffer(case.record, payment.record.dtype)["flags"][0]
        same_marks = flags == payment.record["flags"][0]
        if again == case.value and same_marks:
            return Verdict(case, Kind.SAME, again=again)
        made = decision_pb2.Decision.FromString(again)
        found = differences(case.decision, made)
        if not same_marks:
            found += (Difference("record.flags", str(flags), str(payment.record["flags"][0]), 0),)
        return self._verdict(case, cause_of(found), found, again)


def payment_of(case: Case, record: NDArray[np.void]) -> Payment:
    """Return the payment of a case; ``record`` RECORD[1] becomes its."""
    told = case.told
    data = case.value[told[Told.TRANSACTION] : told[Told.TRANSACTION_END]]
    ids = record.view(np.int64).reshape(1, -1)
    return Payment(data, record, ids, int(told[Told.RECEIVED_MS]))


def _stamp(case: Case, payment: Payment) -> Stamp:
    """Return what the shell added, which nobody decided; but for steps, which end a decision."""
    logged, told = case.decision, case.decision.assessment
    return Stamp(
        payment.ids.item(REQUEST_WORD), told.trace_id.encode(), logged.log_position,
        payment.received_ms, told.time_used.ToNanoseconds(),
        origin_of(logged.traceparent, logged.scorer), True,
    )  # fmt: skip


def cause_of_versions(
    case: Case, versions: NDArray[np.int64], *, is_shared: bool
) -> tuple[str, tuple[Difference, ...]]:
    """Return why states are not those that the decision had, and which."""
    found = tuple(
        Difference(f"entity_versions[{entity}]", str(logged), str(made), 0)
        for entity, (logged, made) in enumerate(zip(case.versions, versions.tolist(), strict=True))
        if logged != made
    )
    if not is_shared and any(logged > case.position for logged in case.versions):
        return OF_SEVERAL_HOSTS, found
    return OTHER_STATES, found
