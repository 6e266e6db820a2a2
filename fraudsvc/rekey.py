"""A log under another id secret: the same events at the same positions, with other ids.

Owns what of the log is keyed and how each id is found again: a payment's from the transaction in
its decision, a label's from its text, what a history brought from its file, and a feedback's from
the payment that it is about. Decisions stay as they were said, their ids too. Must not know how a
log keeps its bytes (``featurizer.rewrite``).

In memory are 40 bytes a decision, 350 a payment that has a label, and 180 a row of the history.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fraud.v1 import decision_pb2, label_pb2
from numpy.typing import NDArray

from featurizer.eventlog import Batch, LogError, Topic
from featurizer.former_ids import write_former_ids
from featurizer.hashing import ROW_IDS, SPACE_TRANSACTION, IdHasher, request_hash_of
from featurizer.kept import Column, scan
from featurizer.records import RECORD, TRANSACTION_WORD, Entity
from featurizer.rewrite import Tell, drafted, leave_out, rewrite_segments, unwritten
from featurizer.segments import SegmentReader
from fraudsvc.contract import FREE_TEXT_FIELDS, ContractSettings
from fraudsvc.errors import ServiceError
from fraudsvc.intake import Intake
from fraudsvc.replay.told import Told, read_told

READ_BYTES = 4 << 20
# What was decided was valid then, whatever the clock and the settings of now are.
_CONTRACT = ContractSettings(max_age_days=None, exempt_fields=FREE_TEXT_FIELDS)
_NOW_MS = 1 << 59
_ID_BYTES = 8 * ROW_IDS
_IDS_AT = 8 * TRANSACTION_WORD  # the ids of a record stand in one piece
_CUSTOMER = 2 + Entity.CUSTOMER
_KEY_AT, _KEY_BYTES = -8, 8  # of an entry, before its value
_KEYED = (Topic.TRANSACTIONS, Topic.DECISIONS, Topic.LABELS, Topic.FEEDBACK)

Ids = NDArray[np.int64]  # int64[n, ROW_IDS]: from transaction to pair, in the record's order


@dataclass(slots=True)
class Rekeyed:
    """What was found: payments with their decisions, labels, events of a history or of labels.

    ``lost`` records could not be keyed, the first of them at ``first_lost``. ``end`` is the
    position after the last frame, in both logs.
    """

    decided: int = 0
    labels: int = 0
    others: int = 0
    lost: int = 0
    first_lost: int = -1
    end: int = 0

    @property
    def proved(self) -> bool:
        """Whether anything on the log bears the old secret out."""
        return bool(self.decided or self.labels or self.others)


def _ids_of(records: NDArray[np.void]) -> Ids:
    raw = np.ascontiguousarray(records).view(np.uint8).reshape(len(records), RECORD.itemsize)
    return np.ascontiguousarray(raw[:, _IDS_AT : _IDS_AT + _ID_BYTES]).view(np.int64)


class History:
    """The ids of a history's rows under both secrets, sorted by the old ones.

    ``old`` and ``new`` are RECORD[n], row by row of the same payment.
    """

    def __init__(self, old: NDArray[np.void], new: NDArray[np.void]) -> None:
        keys = _ids_of(old).view(f"S{_ID_BYTES}").reshape(-1)
        order = np.argsort(keys, kind="stable")
        self._keys, self._new = keys[order], _ids_of(new)[order]

    def find(self, old: Ids) -> tuple[Ids, NDArray[np.bool_]]:
        """Return the new ids, and bool[n]: whether there are any."""
        keys = np.ascontiguousarray(old).view(f"S{_ID_BYTES}").reshape(-1)
        if not len(self._keys):
            return old, np.zeros(len(old), np.bool_)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return self._new[at], self._keys[at] == keys


NO_HISTORY = History(np.zeros(0, RECORD), np.zeros(0, RECORD))


class _Block:
    """The numbers in a block of the log, at many places at once."""

    def __init__(self, batch: Batch, data: bytes | bytearray) -> None:
        self._raw = np.frombuffer(data, np.uint8)
        self._starts = batch.starts

    def _at(self, entries: NDArray[np.int64], offset: int, size: int) -> NDArray[np.int64]:
        return self._starts[entries][:, None] + (offset + np.arange(size))

    def ids(self, entries: NDArray[np.int64]) -> Ids:
        return np.ascontiguousarray(self._raw[self._at(entries, _IDS_AT, _ID_BYTES)]).view(np.int64)

    def put_ids(self, entries: NDArray[np.int64], ids: Ids) -> None:
        values = np.ascontiguousarray(ids).view(np.uint8).reshape(-1, _ID_BYTES)
        self._raw[self._at(entries, _IDS_AT, _ID_BYTES)] = values
        self.put_keys(entries, ids[:, _CUSTOMER])

    def put_keys(self, entries: NDArray[np.int64], keys: NDArray[np.int64]) -> None:
        values = np.ascontiguousarray(keys).view(np.uint8).reshape(-1, _KEY_BYTES)
        self._raw[self._at(entries, _KEY_AT, _KEY_BYTES)] = values


class Rekeyer:
    """Edits batches of a log, in its order, from ``old`` to ``new``; ``found`` is what it met.

    ``labelled`` are the old hashes of the transactions that feedback tells of. Where
    ``leaves_out``, records whose ids cannot be found again are taken out of their frames.
    """

    def __init__(
        self,
        old: IdHasher,
        new: IdHasher,
        labelled: NDArray[np.int64],
        history: History = NO_HISTORY,
        *,
        leaves_out: bool = False,
    ) -> None:
        self._hashers = (old, new)
        self._intakes = (Intake(old, _CONTRACT), Intake(new, _CONTRACT))
        self._labelled = labelled
        self._payments: dict[bytes, bytes] = {}  # ids of a labelled one, before and after
        self._history = history
        self._leaves_out = leaves_out
        self._former: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self.found = Rekeyed()

    def edit(self, batch: Batch, data: bytearray) -> None:
        """Give all that is keyed in ``data`` its new ids. Raises LogError."""
        if not len(batch.topics):
            return
        _look_at(batch)
        block, topics = _Block(batch, data), batch.topics
        decisions = np.flatnonzero(topics == Topic.DECISIONS)
        self._decided(batch, block, decisions)
        self._labels(batch, block, np.flatnonzero(topics == Topic.LABELS))
        records = _records(batch)
        records[decisions - 1] = False
        lost = self._others(block, np.flatnonzero(records))
        if len(lost) and not self.found.lost:
            self.found.first_lost = int(batch.positions[lost[0]])
        self.found.lost += len(lost)
        if self._leaves_out:
            for entry in lost.tolist():
                leave_out(batch, data, entry)

    def former_ids(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the hashes of all requests as their decisions' ids have them, and the new ones."""
        if not self._former:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        former, now = zip(*self._former, strict=True)
        return np.concatenate(former), np.concatenate(now)

    def _decided(self, batch: Batch, block: _Block, decisions: NDArray[np.int64]) -> None:
        """Key the records of decisions, and what feedback will ask of them."""
        if not len(decisions):
            return
        records = decisions - 1
        old, new = self._hashed(batch, decisions)
        logged = block.ids(records)
        wrong = np.flatnonzero((logged != old).any(axis=1))
        if len(wrong):
            at = int(batch.positions[records[wrong[0]]])
            raise LogError(f"the record at {at} has other ids than the old secret gives: wrong?")
        block.put_ids(records, new)
        block.put_keys(decisions, new[:, _CUSTOMER])
        for i in np.flatnonzero(np.isin(old[:, 0], self._labelled)).tolist():
            self._payments.setdefault(old[i].tobytes(), new[i].tobytes())
        self._former.append((_named(batch), np.ascontiguousarray(new[:, 1])))
        self.found.decided += len(decisions)

    def _hashed(self, batch: Batch, decisions: NDArray[np.int64]) -> tuple[Ids, Ids]:
        """Return the ids of the decisions' transactions under both secrets."""
        payments = _payments(batch, decisions)
        old, new = (self._taken(intake, payments, batch, decisions) for intake in self._intakes)
        return old, new

    def _taken(
        self, intake: Intake, payments: list[bytes], batch: Batch, decisions: NDArray[np.int64]
    ) -> Ids:
        records = np.zeros(len(payments), RECORD)
        words = records.view(np.int64).reshape(len(payments), -1)
        taken = intake.take_all(payments, _NOW_MS, records, words)
        for i, each in enumerate(taken):
            if isinstance(each, ServiceError):
                at = int(batch.positions[decisions[i]])
                raise LogError(f"the transaction of the decision at {at} is none: {each.reason}")
        return _ids_of(records)

    def _labels(self, batch: Batch, block: _Block, labels: NDArray[np.int64]) -> None:
        """Key labels by the transactions that they name."""
        if not len(labels):
            return
        values = map(batch.value, labels.tolist())
        texts = [label_pb2.Label.FromString(value).transaction_id.encode() for value in values]
        spaces = np.full(len(texts), SPACE_TRANSACTION, np.int64)
        old, new = (hasher.many(spaces, texts) for hasher in self._hashers)
        wrong = np.flatnonzero(batch.keys[labels] != old)
        if len(wrong):
            at = int(batch.positions[labels[wrong[0]]])
            raise LogError(f"the label at {at} has another key than the old secret gives: wrong?")
        block.put_keys(labels, new)
        self.found.labels += len(labels)

    def _others(self, block: _Block, entries: NDArray[np.int64]) -> NDArray[np.int64]:
        """Key records without a decision; return the entries that nothing leads back to."""
        if not len(entries):
            return entries
        old = block.ids(entries)
        new, known = self._history.find(old)
        for i in np.flatnonzero(~known).tolist():
            payment = self._payments.get(old[i].tobytes())
            if payment is not None:
                new[i], known[i] = np.frombuffer(payment, np.int64), True
        block.put_ids(entries[known], new[known])
        self.found.others += int(known.sum())
        return entries[~known]


def _records(batch: Batch) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = (batch.topics == Topic.TRANSACTIONS) | (
        batch.topics == Topic.FEEDBACK
    )
    return found


def _look_at(batch: Batch) -> None:
    """Raise LogError for what this version does not know how to key."""
    topics = batch.topics
    known = np.isin(topics, _KEYED) | (batch.keys == 0)
    known &= ~_records(batch) | (batch.lengths == RECORD.itemsize)
    decisions = np.flatnonzero(topics == Topic.DECISIONS)
    before = np.maximum(decisions - 1, 0)
    known[decisions] &= topics[before] == Topic.TRANSACTIONS
    known[decisions] &= batch.frames[before] == batch.frames[decisions]
    if not known.all():
        at = int(np.flatnonzero(~known)[0])
        raise LogError(
            f"the entry at {batch.positions[at]}, of topic {topics[at]}, is none that can be keyed"
        )


def _payments(batch: Batch, decisions: NDArray[np.int64]) -> list[bytes]:
    """Return the bytes of each decision's transaction."""
    data = np.frombuffer(batch.data, np.uint8)
    starts = batch.starts[decisions]
    told = read_told(data, starts, batch.lengths[decisions])
    spans = told[:, Told.TRANSACTION : Told.TRANSACTION_END + 1] + starts[:, None]
    are_read = told[:, Told.IS_READ].tolist()
    return [
        batch.data[start:stop] if is_read else _parsed(batch, entry)
        for entry, is_read, (start, stop) in zip(
            decisions.tolist(), are_read, spans.tolist(), strict=True
        )
    ]


def _parsed(batch: Batch, entry: int) -> bytes:
    decision = decision_pb2.Decision.FromString(batch.value(entry))
    return decision.transaction.SerializeToString(deterministic=True)


def _named(batch: Batch) -> NDArray[np.int64]:
    """Return the request's hash in the id of each decision of a batch."""
    found = scan(batch)
    ids = (
        found.decision_id(i)
        if found.rows[i, Column.ID_AT]
        else decision_pb2.Decision.FromString(batch.value(entry)).assessment.decision_id
        for i, entry in enumerate(found.entries.tolist())
    )
    return np.array([request_hash_of(each) for each in ids], np.int64)


def labelled_in(directory: Path) -> NDArray[np.int64]:
    """Return the hashes of the transactions that a log's feedback tells of, sorted."""
    reader = SegmentReader(directory)
    try:
        found = [np.zeros(0, np.int64)]
        position = reader.firsts()[0]
        while (batch := reader.read(position, READ_BYTES)).next_position != position:
            entries = np.flatnonzero(batch.topics == Topic.FEEDBACK)
            if len(entries):
                _look_at(batch)
                found.append(np.unique(_Block(batch, batch.data).ids(entries)[:, 0]))
            position = batch.next_position
    finally:
        reader.close()
    return np.unique(np.concatenate(found))


def rekey(
    source: Path,
    target: Path,
    hashers: tuple[IdHasher, IdHasher],
    history: History,
    tell: Tell,
    *,
    leaves_out: bool = False,
) -> Rekeyed:
    """Write the log in ``source`` to ``target``, which is not there, under another secret.

    ``hashers`` are those of the old and the new one. Raises LogError and OSError where it cannot
    be done; then there is no ``target``, and ``source`` is as it was in any case.
    """
    with unwritten(source), drafted(target) as draft:
        rekeyer = Rekeyer(*hashers, labelled_in(source), history, leaves_out=leaves_out)
        found = rekeyer.found
        found.end = rewrite_segments(source, draft, rekeyer.edit, tell)
        if found.lost and not (leaves_out and found.proved):
            raise LogError(
                f"{found.lost} records have ids that cannot be found again, the first of them at "
                f"{found.first_lost}: give the history that they came from"
            )
        write_former_ids(draft, *rekeyer.former_ids())
    return found
