"""A log under another id secret is what it would have been, had that secret been there all along.

The oracle is a host that did the same under the new secret from the start. Its clocks stand still,
so that every frame has the length that it has on the other host.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from fraud.v1 import dead_letter_pb2, decision_pb2, label_pb2, model_event_pb2, transaction_pb2

from featurizer.__main__ import main as featurizer_main
from featurizer.backfill import backfill, read_history
from featurizer.eventlog import Entry, LogError, Topic
from featurizer.eventlog_file import FileEventLog
from featurizer.features import INDEX
from featurizer.former_ids import FormerIds
from featurizer.hashing import SPACE_REQUEST, IdHasher, decision_id, request_hash_of
from featurizer.load import LoggedArena
from featurizer.records import RECORD
from featurizer.segments import list_segments, segment_path
from fraudsvc.calls import Call
from fraudsvc.errors import ServiceError
from fraudsvc.policy import DEFAULT_POLICY, load_policy
from fraudsvc.rekey import NO_HISTORY, History, Rekeyed, rekey
from tests.conftest import Asked, Host, Logged, Payments, Trained, first_records, read_all

A, B, C = (bytes(range(start, start + 16)) for start in (65, 97, 7))
SEGMENT_BYTES = 64 << 10
HISTORY_ROWS = 60
STILL_NS = 1_000
COMMAND_S = 240
NOBODY = """
[[lists]]
code = "NOBODY"
action = "deny"
field = "customer_id"
values = ["customer"]
"""
Tell = Callable[[int, int], None]


class Still(Host):
    """A host whose clocks stand still and whose segments are small.

    Payments that may be on a list are not decided by the kernel that has a clock of its own.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        path = self.folder / "policy.toml"
        path.write_text(DEFAULT_POLICY.read_text() + NOBODY)
        self.policy = load_policy(path, INDEX)

    def open_log(self) -> FileEventLog:
        return FileEventLog(
            self.folder / "log", sync_interval_ms=1_000, segment_bytes=SEGMENT_BYTES
        )


def still_host(folder: Path, trained: Trained, secret: bytes) -> Still:
    return Still(folder, trained.bundle, secret=secret, monotonic_ns=lambda: STILL_NS)


def call() -> Call:
    return Call(0, 1 << 60)


def history_of(folder: Path) -> Path:
    """Write a history whose last rows are of customers that pay later, some with labels."""
    rows = ["transaction_id,event_time,customer_id,amount_minor,merchant_id,is_fraud,label_time"]
    for i in range(HISTORY_ROWS):
        at_ms = 1_740_000_000_000 + 60_000 * i
        label = f"{i % 2},{at_ms + 90_000}" if i % 5 == 0 else ","
        rows.append(f"old-{i},{at_ms},customer-{i % 9},{100 + i},merchant-{i % 4},{label}")
    path = folder / "history.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


class Told(NamedTuple):
    """What a host was sent, what it answered, and the labels that it got."""

    sent: list[transaction_pb2.Transaction]
    answers: list[decision_pb2.Assessment]
    labels: list[label_pb2.Label]


def play(host: Still, history: Path, payments: Payments) -> Told:
    """Load a history, decide alone and in a batch, take labels, and note what has no key."""
    records = read_history(history, IdHasher(host.secret), {})
    backfill(records, host.folder / "vectors.parquet", LoggedArena(host.log, None, 1 << 30))
    host.fold()
    scorer = host.scorer()
    sent = [payments.one() for _ in range(30)]
    sent.append(payments.one(customer_id="customer-ü", ip_address="2001:db8::7"))
    answers = [scorer.score(each, call()) for each in sent]
    batch = [payments.one() for _ in range(40)]
    answers += [each.assessment for each in scorer.score_batch(batch, call())]
    bundle, host.bundle = host.bundle, None
    batch.append(payments.one())
    answers.append(scorer.score(batch[-1], call()))
    host.bundle = bundle
    sent += batch
    labels = [payments.label(each.transaction_id) for each in sent[::4]]
    labels += [payments.label(name) for name in ("never-seen", "old-3", "old-5")]
    labels[2].verdict = label_pb2.VERDICT_UNCLEAR
    scorer.report_labels(labels)
    event = model_event_pb2.ModelEvent(model_version="m-1").SerializeToString()
    letter = dead_letter_pb2.DeadLetter(topic="labels", offset=8).SerializeToString()
    host.log.append([[Entry(Topic.MODELS, 0, event)], [Entry(Topic.DEAD_LETTERS, 0, letter)]])
    host.fold()
    return Told(sent, answers, labels)


class World(NamedTuple):
    """A host under A, one that did the same under B, and the first one's log under B."""

    old: Still
    oracle: Still
    new: Path
    told: Told
    history: Path
    secrets: Path
    said: str


def keep_secrets(folder: Path) -> Path:
    for name, secret in (("a", A), ("b", B)):
        (folder / f"{name}.secret").write_bytes(secret)
    return folder


def command(source: Path, target: Path, secrets: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "fraudsvc", "rekey", "--log", f"file://{source}",
        "--new-log", f"file://{target}", "--id-secret", str(secrets / "a.secret"),
        "--new-id-secret", str(secrets / "b.secret"), *more,
    ]  # fmt: skip


def ran(argv: list[str], **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, capture_output=True, text=True, timeout=COMMAND_S, check=False, **more
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, trained: Trained) -> Iterator[World]:
    folders = [tmp_path_factory.mktemp(name) for name in ("a", "b", "new")]
    old, oracle = (
        still_host(folder, trained, each) for folder, each in zip(folders, (A, B), strict=False)
    )
    history = history_of(folders[2])
    told = play(old, history, Payments())
    play(oracle, history, Payments())
    old.log.close()  # nobody writes meanwhile
    before = digest(old.folder / "log")
    secrets, new = keep_secrets(folders[2]), folders[2] / "log"
    done = ran(command(old.folder / "log", new, secrets, "--history", str(history)))
    assert done.returncode == 0, done.stderr
    assert digest(old.folder / "log") == before
    old.log = old.open_log()
    yield World(old, oracle, new, told, history, secrets, done.stdout + done.stderr)
    old.close()
    oracle.close()


@pytest.fixture
def host(world: World, trained: Trained, tmp_path: Path) -> Iterator[Still]:
    """A host on the log under B, which has folded it."""
    shutil.copytree(world.new, tmp_path / "log")
    made = still_host(tmp_path, trained, B)
    made.fold()
    yield made
    made.close()


@pytest.fixture
def copy(world: World, tmp_path: Path) -> Path:
    """A copy of the log under A, for a test to do with as it likes."""
    return Path(shutil.copytree(world.old.folder / "log", tmp_path / "copy"))


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def ages(folder: Path) -> list[int]:
    paths = [Path(segment_path(folder, first)) for first in list_segments(folder)]
    return [path.stat().st_mtime_ns for path in paths]


def entries(folder: Path) -> list[tuple[Logged, int]]:
    """Return all entries of a log with their keys."""
    log = FileEventLog(folder, read_only=True)
    keys: list[int] = []
    position = log.ends()[0]
    while (batch := log.read(position, 1 << 20)).next_position != position:
        keys += batch.keys.tolist()
        position = batch.next_position
    found = read_all(log)
    log.close()
    return list(zip(found, keys, strict=True))


def unnamed(value: bytes) -> decision_pb2.Decision:
    """Return a decision without what is another each time: its id, its trace, its call's number."""
    decision = decision_pb2.Decision.FromString(value)
    decision.assessment.ClearField("decision_id")
    decision.assessment.ClearField("trace_id")
    decision.shared.number = 0
    return decision


def hashed(history: Path, old: bytes = A, new: bytes = B) -> History:
    return History(*(read_history(history, IdHasher(each), {}).records for each in (old, new)))


def rekeyed(source: Path, target: Path, history: History = NO_HISTORY, **more: Any) -> Rekeyed:
    hashers = IdHasher(more.pop("old", A)), IdHasher(more.pop("new", B))
    tell: Tell = more.pop("tell", lambda _done, _all: None)
    return rekey(source, target, hashers, history, tell, **more)


def test_every_entry_is_what_the_new_secret_would_have_made_it(world: World) -> None:
    before, after = entries(world.old.folder / "log"), entries(world.new)
    wanted = entries(world.oracle.folder / "log")
    assert len(list_segments(world.new)) > 3
    assert list_segments(world.new) == list_segments(world.old.folder / "log")
    assert ages(world.new)[:-1] == ages(world.old.folder / "log")[:-1]  # both are dropped alike
    assert {each.topic for each, _ in after} >= set(Topic) - {Topic.AUDIT}
    for (old, _), (new, key), (want, want_key) in zip(before, after, wanted, strict=True):
        assert (new.topic, new.position, new.frame, key) == (
            want.topic, want.position, want.frame, want_key
        )  # fmt: skip
        if new.topic == Topic.DECISIONS:  # as it was said
            assert new.value == old.value
            assert unnamed(new.value) == unnamed(want.value)
        else:
            assert new.value == want.value


def test_states_are_those_of_the_new_secret(world: World, host: Still) -> None:
    records, _, _ = first_records([each for each, _ in entries(world.oracle.folder / "log")])
    keys = [int(key) for key in np.unique(records["entities"]) if key]
    states = host.states(keys)
    assert len(states) > 100
    assert states == world.oracle.states(keys)
    snapshot, other = host.store.snapshot(), world.oracle.store.snapshot()
    ids = [int(each) for each in np.unique([records["transaction"], records["request"]]) if each]
    assert snapshot.find_many(ids) == other.find_many(ids)
    assert snapshot.position == other.position
    snapshot.close()
    other.close()


def test_the_next_payment_meets_the_features_that_it_would_have_met(
    world: World, host: Still
) -> None:
    source = Payments(seed=5, start_ms=world.told.sent[-1].event_time.ToMilliseconds())
    payments = [source.one() for _ in range(25)]
    hosts = world.old, world.oracle, host
    for each in hosts:
        scorer = each.scorer()
        for payment in payments:
            scorer.score(payment, call())
    old, oracle, new = ([e.value for e in read_all(h.log)][-50:] for h in hosts)
    assert [unnamed(each) for each in old[1::2]] == [unnamed(each) for each in new[1::2]]
    assert [unnamed(each) for each in oracle[1::2]] == [unnamed(each) for each in new[1::2]]
    assert oracle[0::2] == new[0::2]
    assert all(len(unnamed(each).features) for each in new[1::2])


def test_a_repeat_across_the_switch_gets_the_first_answer(world: World, host: Still) -> None:
    scorer, end = host.scorer(), host.log.ends()
    for payment, answer in zip(world.told.sent, world.told.answers, strict=True):
        again = scorer.score(payment, call())
        assert again.decision_id == answer.decision_id
        assert without_time(again) == without_time(answer)
        assert scorer.get_decision(answer.decision_id).transaction == payment
        other = transaction_pb2.Transaction()
        other.CopyFrom(payment)
        other.amount_minor += 1
        assert refused(scorer, other) == "REQUEST_ID_REUSED"
    for result, answer in zip(
        scorer.score_batch(world.told.sent, call()), world.told.answers, strict=True
    ):
        assert without_time(result.assessment) == without_time(answer)
    assert host.log.ends() == end


def without_time(answer: decision_pb2.Assessment) -> decision_pb2.Assessment:
    kept = decision_pb2.Assessment()
    kept.CopyFrom(answer)
    kept.ClearField("time_used")
    return kept


def refused(scorer: Asked, transaction: transaction_pb2.Transaction) -> str:
    with pytest.raises(ServiceError) as caught:
        scorer.score(transaction, call())
    return caught.value.reason


def test_labels_after_the_switch_find_payments_from_before(world: World, host: Still) -> None:
    labels = [Payments().label(each.transaction_id) for each in world.told.sent[1::7]]
    labels.append(Payments().label("old-7"))
    for each in (world.oracle, host):
        each.scorer().report_labels(labels)
    new, wanted = read_all(host.log), read_all(world.oracle.log)
    told = [each.value for each in new if each.topic == Topic.FEEDBACK]
    assert told == [each.value for each in wanted if each.topic == Topic.FEEDBACK]


def test_a_second_rotation_keeps_the_first_ids(
    world: World, trained: Trained, tmp_path: Path
) -> None:
    found = rekeyed(world.new, tmp_path / "log", hashed(world.history, B, C), old=B, new=C)
    assert found.decided == len(world.told.sent)
    host = still_host(tmp_path, trained, C)
    host.fold()
    scorer = host.scorer()
    for payment, answer in zip(world.told.sent, world.told.answers, strict=True):
        assert scorer.get_decision(answer.decision_id).transaction == payment
        assert without_time(scorer.score(payment, call())) == without_time(answer)
    host.close()


def test_nothing_says_an_id_or_a_secret(world: World) -> None:
    assert f"{len(world.told.sent)} payments" in world.said
    for payment in world.told.sent:
        assert payment.transaction_id not in world.said
        assert payment.request_id not in world.said
    for text in ("customer-", "merchant-", "old-", A.hex(), B.hex(), A.decode(), B.decode()):
        assert text not in world.said


def untouched(source: Path, target: Path, before: dict[str, str]) -> bool:
    """Whether the old log is as it was, and there is neither a new one nor a draft of it."""
    rest = {path.name for path in target.parent.iterdir()} - {source.name}
    return digest(source) == before and not any(target.name in name for name in rest)


def test_the_wrong_secret_is_refused(world: World, copy: Path, tmp_path: Path) -> None:
    before, target = digest(copy), tmp_path / "other"
    for history in (hashed(world.history), hashed(world.history, C, B)):
        with pytest.raises(LogError, match="other ids than the old secret"):
            rekeyed(copy, target, history, old=C)
    assert untouched(copy, target, before)


def test_a_history_is_asked_for_by_number_and_place(world: World, copy: Path) -> None:
    before, target = digest(copy), copy.parent / "other"
    done = ran(command(copy, target, world.secrets))
    records = [each for each, _ in entries(copy) if each.topic == Topic.TRANSACTIONS]
    assert done.returncode == 2
    labelled = -(-HISTORY_ROWS // 5) + 2  # with the two labels that came later
    assert f"{HISTORY_ROWS + labelled} records have ids that cannot be found again" in done.stderr
    assert f"at {records[0].position}:" in done.stderr
    assert untouched(copy, target, before)


def test_records_are_left_out_where_that_is_asked_for(copy: Path, tmp_path: Path) -> None:
    found = rekeyed(copy, tmp_path / "other", leaves_out=True)
    assert found.lost == HISTORY_ROWS + 14
    gone = {each.position for each, _ in entries(copy)} - {
        each.position for each, _ in entries(tmp_path / "other")
    }
    assert len(gone) == found.lost
    assert min(gone) == found.first_lost
    kept = [each for each, _ in entries(copy) if each.position not in gone]
    made = [each for each, _ in entries(tmp_path / "other")]
    assert [each[:3] for each in made] == [each[:3] for each in kept]
    assert list_segments(tmp_path / "other") == list_segments(copy)
    assert not FileEventLog(tmp_path / "other").opened_damage


def test_a_history_alone_proves_no_secret(world: World, trained: Trained, tmp_path: Path) -> None:
    host = still_host(tmp_path, trained, A)
    records = read_history(world.history, IdHasher(A), {})
    backfill(records, tmp_path / "vectors.parquet", LoggedArena(host.log, None, 1 << 30))
    host.close()
    with pytest.raises(LogError, match="cannot be found again"):
        rekeyed(tmp_path / "log", tmp_path / "other", leaves_out=True)
    assert rekeyed(tmp_path / "log", tmp_path / "other", hashed(world.history)).lost == 0
    assert FormerIds(tmp_path / "other").now(5) == 5


def test_a_history_is_put_on_a_log_under_the_secret_that_is_named(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [
        "backfill", str(world.history), str(tmp_path / "vectors.parquet"), "--log",
        f"file://{tmp_path}/log", "--id-secret", str(world.secrets / "a.secret"),
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["featurizer", *argv])
    assert featurizer_main() == 0
    found = rekeyed(tmp_path / "log", tmp_path / "other", hashed(world.history))
    assert found.others == HISTORY_ROWS + -(-HISTORY_ROWS // 5)


def test_a_log_that_lost_its_beginning_asks_for_what_labels_tell_of(
    world: World, copy: Path, tmp_path: Path
) -> None:
    for first in list_segments(copy)[:-2]:
        Path(segment_path(copy, first)).unlink()
    history = hashed(world.history)
    with pytest.raises(LogError, match="cannot be found again"):
        rekeyed(copy, tmp_path / "other", history)
    found = rekeyed(copy, tmp_path / "other", history, leaves_out=True)
    assert found.lost > 0
    wanted = {each.position: each.value for each, _ in entries(world.oracle.folder / "log")}
    for each, _ in entries(tmp_path / "other"):
        if each.topic != Topic.DECISIONS:
            assert each.value == wanted[each.position]


def test_a_full_disk_leaves_nothing_behind(world: World, copy: Path, tmp_path: Path) -> None:
    before, target = digest(copy), tmp_path / "other"
    argv = command(copy, target, world.secrets, "--history", str(world.history))
    done = ran(["bash", "-c", f"ulimit -f 40; exec {' '.join(argv)}"])
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert untouched(copy, target, before)


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.test_rekey import hashed, rekeyed
kill = lambda done, all: done < all // 2 or os.kill(os.getpid(), signal.SIGKILL)
rekeyed(Path(sys.argv[1]), Path(sys.argv[2]), hashed(Path(sys.argv[3])), tell=kill)
"""


def test_a_kill_in_the_middle_leaves_a_draft_that_the_next_run_replaces(
    world: World, copy: Path, tmp_path: Path
) -> None:
    before, target = digest(copy), tmp_path / "other"
    done = ran([sys.executable, "-c", KILLED, str(copy), str(target), str(world.history)])
    assert done.returncode == -9, done.stderr
    assert digest(copy) == before
    assert {path.name for path in tmp_path.iterdir()} == {"copy", "other.draft"}
    rekeyed(copy, target, hashed(world.history))
    assert {path.name for path in tmp_path.iterdir()} == {"copy", "other"}
    wanted = entries(world.new)
    assert entries(target)[: len(wanted)] == wanted


def test_an_id_of_an_earlier_secret_is_known_by_its_request_alone(world: World) -> None:
    former, hasher = FormerIds(world.new), IdHasher(B)
    requests = [hasher.one(SPACE_REQUEST, each.request_id) for each in world.told.sent]
    for answer, request, other in zip(
        world.told.answers, requests, requests[1:] + requests[:1], strict=True
    ):
        assert former.now(request_hash_of(answer.decision_id)) == former.now(request) == request
        assert former.have_named(answer.decision_id, request)
        assert not former.have_named(answer.decision_id, other)
        assert not former.have_named(decision_id(request, 1), request)
    assert not former.have_named("no id", requests[0])


def test_what_cannot_be_keyed_is_named(world: World, copy: Path, tmp_path: Path) -> None:
    log = FileEventLog(copy)
    at = log.append([[Entry(Topic.TRANSACTIONS, 5, bytes(RECORD.itemsize + 8))]])[0] + 1
    log.close()
    with pytest.raises(LogError, match=f"the entry at {at}, of topic 1, is none that can be keyed"):
        rekeyed(copy, tmp_path / "other", hashed(world.history))
