"""Each reader that takes bytes from outside, good samples for it, and the one error it may raise.

A target takes bytes and returns; whatever else it raises is a finding. What can be said of a
reader beyond that (a checksum that holds, two readers that agree) is asserted in it.
"""

from __future__ import annotations

import io
import json
import struct
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from fraud.v1 import fraud_service_pb2 as pb
from fraud.v1 import label_pb2, transaction_pb2
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from featurizer.arena import Arena
from featurizer.backfill import read_history
from featurizer.eventlog import Entry, LogError, Topic
from featurizer.eventlog_file import FileEventLog
from featurizer.features import FEATURES, INDEX
from featurizer.frames import FrameScanner, encode_append
from featurizer.hashing import IdHasher
from featurizer.history import HistoryError
from featurizer.records import RECORD
from featurizer.state import check_blob
from fraudsvc.callers.roles import CallersError, parse_callers
from fraudsvc.client.documents import documents, transaction_of
from fraudsvc.contract import Checker, ContractSettings
from fraudsvc.errors import ServiceError
from fraudsvc.intake import Intake
from fraudsvc.policy import DEFAULT_POLICY, PolicyError, load_policy
from fraudsvc.requests import read_batch, read_score
from trainer.bundle_files import (
    FILES,
    BundleError,
    array_bytes,
    array_of,
    id_of,
    json_bytes,
    parse_manifest,
)

NOW_MS = 1_750_000_000_000
SALT = 7
BOUNDS = ContractSettings(max_age_days=None)


class Target(NamedTuple):
    """A reader, samples that it takes, and what it may raise."""

    read: Callable[[bytes], object]
    samples: Callable[[], Sequence[bytes]]
    error: tuple[type[Exception], ...] = ()


def payment(number: int = 0) -> transaction_pb2.Transaction:
    """Return a good transaction with every kind of field."""
    made = transaction_pb2.Transaction(
        request_id=str(uuid.UUID(int=number)), transaction_id=f"t-{number}", customer_id="c",
        amount_minor=1_250, currency_code="EUR", ip_address="10.0.0.1", device_id="d" * 40,
        billing_region_code="DE", channel=transaction_pb2.CHANNEL_ECOMMERCE,
    )  # fmt: skip
    made.event_time.FromMilliseconds(NOW_MS)
    made.card.token, made.card.bin, made.card.last_four = "tok", "431940", "4242"
    made.merchant.merchant_id, made.merchant.category_code = "m", "5732"
    made.position.latitude_degrees = 52.5
    made.email.domain = "example.org"
    return made


def _label() -> label_pb2.Label:
    label = label_pb2.Label(transaction_id="t-0", verdict=1, source=1, reporter="r", note="n")  # type: ignore[arg-type]
    label.label_time.FromMilliseconds(NOW_MS)
    return label


@cache
def _intake() -> tuple[Intake, Checker]:
    return Intake(IdHasher(), BOUNDS), Checker(IdHasher(), BOUNDS)


def _take(data: bytes) -> None:
    """Take a transaction: its record is then what the slow and plain way gives, to the byte."""
    intake, checker = _intake()
    record, again = np.zeros(1, RECORD), np.zeros(1, RECORD)
    taken = intake.take(data, NOW_MS, record, record.view(np.int64))
    assert checker.check(taken.message, NOW_MS, again) == []
    assert record.tobytes() == again.tobytes()


def _requests(data: bytes) -> None:
    """Read a request both ways; what is given on is a message, or is refused as such later."""
    for read in (read_score, read_batch):
        try:
            read(data)
        except ServiceError as error:
            assert error.reason == "MALFORMED_MESSAGE"  # noqa: PT017 - any other is a finding


def _labels(data: bytes) -> None:
    try:
        request = pb.ReportLabelsRequest.FromString(data)
    except DecodeError:
        return
    for label in request.labels:
        for bad in _intake()[1].check_label(label, NOW_MS):
            assert bad.field.startswith("label.")


@cache
def _scanner() -> FrameScanner:
    return FrameScanner(SALT)


def _frames(data: bytes) -> None:
    """Scan a block: every entry lies within it, and positions only grow."""
    found = _scanner().scan(data, True, 0)
    batch = _scanner().batch(data, found, 0, found.next_position, ())
    assert 0 <= found.next_position <= len(data)
    assert (np.diff(batch.positions) > 0).all()
    for i in range(len(batch.topics)):
        assert len(batch.value(i)) <= len(data)
    for damage in batch.damage:
        assert 0 <= damage.position <= damage.position + damage.length <= len(data)


def _frame_samples() -> list[bytes]:
    entries = [Entry(Topic.TRANSACTIONS, 1, bytes(160)), Entry(Topic.DECISIONS, 1, b"d" * 99)]
    one, _, _ = encode_append([entries], SALT)
    many, _, _ = encode_append([entries, entries[:1], entries[1:]], SALT)
    return [one, many, one + many + one]


def _segment(data: bytes) -> None:
    """Open a log whose newest segment holds the bytes, and read it to its end."""
    with tempfile.TemporaryDirectory() as folder:
        log = FileEventLog(Path(folder))
        log.close()
        [segment] = Path(folder).glob("*.seg*") or Path(folder).glob("0*")
        segment.write_bytes(data)
        log = FileEventLog(Path(folder), read_only=True)
        try:
            position = log.ends()[0]
            while (batch := log.read(position, 1 << 16)).next_position != position:
                assert batch.next_position > position
                position = batch.next_position
        finally:
            log.close()


@cache
def _segment_samples() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        log = FileEventLog(Path(folder))
        for number in range(4):
            log.append([[Entry(Topic.TRANSACTIONS, number, bytes([number]) * 160)]])
        log.close()
        files = [path for path in Path(folder).iterdir() if path.stat().st_size >= 640]
        return [path.read_bytes()[:4_096] for path in files]


def _blob(data: bytes) -> None:
    if why := check_blob(data):
        raise ValueError(why)


@cache
def _blob_samples() -> list[bytes]:
    intake, _ = _intake()
    arena = Arena()
    records = np.zeros(3, RECORD)
    for number in range(3):
        record = records[number : number + 1]
        intake.take(payment(number).SerializeToString(), NOW_MS, record, record.view(np.int64))
    arena.run(records, np.arange(3) * 8, np.zeros((3, len(FEATURES)), np.float32))
    return [bytes(blob) for _, blob in arena.states()]


def _bundle(data: bytes) -> None:
    """Read the same bytes as an array and as a manifest; raise what both raise."""
    try:
        array_of("weights", data)
    except BundleError:
        parse_manifest(data)


def _bundle_samples() -> list[bytes]:
    arrays = [array_bytes(np.arange(6, dtype=kind).reshape(2, 3)) for kind in ("<f8", "<i4")]
    manifest: dict[str, object] = {
        "format": 1, "schema_version": "s", "files": {name: {"sha256": "0"} for name in FILES},
        "thresholds": {},
    }  # fmt: skip
    manifest["bundle_id"] = id_of(manifest)
    return [*arrays, json_bytes(manifest)]


def _policy(data: bytes) -> None:
    load_policy(data, INDEX)


def _history(ending: str) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"history{ending}"
            path.write_bytes(data)
            history = read_history(path, IdHasher(), {})
        assert len(history.records) == len(history.ids)

    return read


def _table() -> pa.Table:
    return pa.table(
        {
            "transaction_id": ["a", "b", "c"], "event_time": ["2025-01-01T00:00:00Z"] * 3,
            "customer_id": ["x", "y", "x"], "amount_minor": ["100", "2500", "7"],
            "currency": ["EUR", "JPY", ""], "ip": ["10.0.0.1", "::1", ""],
            "is_fraud": ["true", "", "false"],
        }
    )  # fmt: skip


def _csv_samples() -> list[bytes]:
    out = io.BytesIO()
    pa_csv.write_csv(_table(), out)
    return [out.getvalue()]


def _parquet_samples() -> list[bytes]:
    found = []
    for compression in ("none", "snappy"):
        out = io.BytesIO()
        pq.write_table(_table(), out, compression=compression)
        found.append(out.getvalue())
    return found


def _documents(data: bytes) -> None:
    for document in documents(io.StringIO(data.decode(errors="replace"))):
        try:
            transaction_of(document)
        except ValueError:
            continue


def _document_samples() -> list[bytes]:
    made = [json_format.MessageToDict(payment(n)) for n in range(2)]
    lines = "\n".join(json.dumps(each) for each in made)
    return [lines.encode(), json.dumps(made, indent=1).encode()]


CALLERS = b"""
[callers.a]
roles = ["score"]
calls_per_second = 5
burst = 9
[tokens]
jwks = "k"
issuer = "i"
audience = "a"
"""

TARGETS: dict[str, Target] = {
    "transaction": Target(_take, lambda: [payment().SerializeToString()], (ServiceError,)),
    "request": Target(
        _requests,
        lambda: [
            pb.ScoreRequest(transaction=payment()).SerializeToString(),
            pb.ScoreRequest(transaction=payment(), validate_only=True).SerializeToString(),
            pb.ScoreBatchRequest(transactions=[payment(1), payment(2)]).SerializeToString(),
        ],
    ),
    "label": Target(
        _labels, lambda: [pb.ReportLabelsRequest(labels=[_label()] * 2).SerializeToString()]
    ),
    "frames": Target(_frames, _frame_samples),
    "segment": Target(_segment, _segment_samples, (LogError,)),
    "blob": Target(_blob, _blob_samples, (ValueError,)),
    "bundle": Target(_bundle, _bundle_samples, (BundleError,)),
    "policy": Target(_policy, lambda: [DEFAULT_POLICY.read_bytes()], (PolicyError,)),
    "history-csv": Target(_history(".csv"), _csv_samples, (HistoryError,)),
    "history-parquet": Target(_history(".parquet"), _parquet_samples, (HistoryError,)),
    "callers": Target(
        lambda data: parse_callers(data, lambda: 0.0), lambda: [CALLERS], (CallersError,)
    ),
    "documents": Target(_documents, _document_samples, (ValueError,)),
}


def interesting() -> Iterator[bytes]:
    """Yield pieces that readers tend to be wrong about."""
    for number in (0, 1, 127, 128, 255, 1 << 15, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1):
        yield struct.pack("<Q", number)
        yield struct.pack("<I", number & 0xFFFFFFFF)
    yield from (b"\xff" * 10, b"\x80" * 9 + b"\x01", b"\xed\xa0\x80", b"\xf0\x9f\x98\x80", b"\0")
    yield from (b"4111111111111111", b"nan", b"-1", b"1e999", b"[[" * 200, b"{" * 200, b'"', b"\n")
