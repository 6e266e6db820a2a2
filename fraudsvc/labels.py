"""Labels on their way to the log: each checked, and joined to the transaction it is about.

Owns what a label becomes. Must not know when it is appended.
"""

from __future__ import annotations

from fraud.v1 import fraud_service_pb2, label_pb2

from featurizer.eventlog import Entry, Topic
from featurizer.hashing import SPACE_TRANSACTION, IdHasher
from featurizer.records import Entity, Kind
from featurizer.store import Snapshot
from fraudsvc.contract import Checker
from fraudsvc.errors import item_error, refusal
from fraudsvc.journal_tail import JournalTail
from fraudsvc.ledger import Ledger

# What features count. What is taken back stays counted until another verdict takes its place.
_COUNTED = (label_pb2.VERDICT_FRAUD, label_pb2.VERDICT_LEGITIMATE)


class Labels:
    """Turns labels into frames of the log."""

    def __init__(
        self, checker: Checker, hasher: IdHasher, tail: JournalTail, ledger: Ledger
    ) -> None:
        self._checker = checker
        self._hasher = hasher
        self._tail = tail
        self._ledger = ledger

    def take(
        self,
        label: label_pb2.Label,
        now_ms: int,
        snapshot: Snapshot,
        frames: list[list[Entry]],
    ) -> fraud_service_pb2.LabelResult:
        """Check one label, join it to its transaction and add its frame to ``frames``."""
        label.DiscardUnknownFields()  # nobody looked at them, so they are not kept
        violations = self._checker.check_label(label, now_ms)
        if violations:
            return fraud_service_pb2.LabelResult(
                status=fraud_service_pb2.LABEL_STATUS_REJECTED,
                error=item_error(refusal("INVALID_LABEL", violations)),
            )
        identity = self._hasher.one(SPACE_TRANSACTION, label.transaction_id)
        entries = [Entry(Topic.LABELS, identity, label.SerializeToString())]
        frames.append(entries)
        frame = self._tail.find(identity, snapshot)
        feedback = None if frame is None else self._ledger.transaction(frame, identity)
        if feedback is None:
            return fraud_service_pb2.LabelResult(status=fraud_service_pb2.LABEL_STATUS_UNMATCHED)
        if label.verdict not in _COUNTED:
            return fraud_service_pb2.LabelResult(status=fraud_service_pb2.LABEL_STATUS_APPLIED)
        feedback["kind"] = Kind.FEEDBACK
        feedback["verdict"] = label.verdict
        feedback["label_source"] = label.source
        feedback["known_time_ms"] = label.label_time.ToMilliseconds()
        customer = int(feedback[0]["entities"][Entity.CUSTOMER])
        entries.append(Entry(Topic.FEEDBACK, customer, feedback.tobytes()))
        return fraud_service_pb2.LabelResult(status=fraud_service_pb2.LABEL_STATUS_APPLIED)
