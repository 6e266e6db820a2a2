"""The runbooks, walked through in embedded mode: upgrade, roll back, restore, a new id secret."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from fraud.v1 import decision_pb2, transaction_pb2
from fraud.v1 import fraud_service_pb2 as pb

from featurizer.adapters import open_log, open_store
from featurizer.eventlog import Entry, Topic
from featurizer.features import SCHEMA_VERSION
from featurizer.records import RECORD
from featurizer.store import StoreStale
from tests.conftest import Connected, Payments, Trained, connected, process

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "runbooks").glob("*.md"))
OLD_SCHEMA = "s-0123456789abcdef"
COMMAND_S, READY_S = 240, 240
READ_BYTES = 1 << 20
CLOSING_BYTES = 48  # two frames that close a group say the same: either is enough


def run(*arguments: str) -> None:
    command = [sys.executable, "-m", *arguments]
    subprocess.run(command, check=True, capture_output=True, timeout=COMMAND_S)


@contextmanager
def featurizer(data: Path, store: str, log: str = "log") -> Iterator[None]:
    """Follow the log of a folder until the block ends, which begins once it has caught up."""
    ready = data / f"{store}.ready"
    ready.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "featurizer", "run", "--log", f"file://{data}/{log}",
        "--store", f"lmdb://{data}/{store}", "--ready-file", str(ready),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        end = time.monotonic() + READY_S
        while not ready.exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < end, "the featurizer did not get ready"
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.communicate(timeout=READY_S)


def entries(log: Path) -> list[Entry]:
    reader = open_log(f"file://{log}", read_only=True)
    position, found = reader.ends()[0], list[Entry]()
    while (batch := reader.read(position, READ_BYTES)).next_position != position:
        pairs = zip(batch.topics.tolist(), batch.keys.tolist(), strict=True)
        found += [Entry(Topic(t), key, batch.value(i)) for i, (t, key) in enumerate(pairs)]
        position = batch.next_position
    reader.close()
    return found


def keys(log: Path) -> list[int]:
    """Return the keys of every entity on a log."""
    values = [bytes(e.value) for e in entries(log) if e.topic == Topic.TRANSACTIONS]
    records = np.frombuffer(b"".join(values), RECORD)
    found = np.unique(records["entities"])
    return [int(key) for key in found if key]


def states(store: Path, wanted: list[int], schema: str = SCHEMA_VERSION) -> dict[int, bytes]:
    opened = open_store(f"lmdb://{store}", schema=schema, read_only=True)
    snapshot = opened.snapshot()
    blobs = snapshot.get_many(wanted)
    found = {k: bytes(b) for k, b in zip(wanted, blobs, strict=True) if b is not None}
    snapshot.close()
    opened.close()
    return found


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data folder with a log and the states of it."""
    data = tmp_path_factory.mktemp("service") / "data"
    data.mkdir()
    world = data.parent / "world.parquet"
    run("loadgen", "world", "--days", "3", "--customers", "60", "--rate", "150",
        "--out", str(world))  # fmt: skip
    run("featurizer", "backfill", str(world), str(data.parent / "vectors.parquet"),
        "--log", f"file://{data}/log")  # fmt: skip
    with featurizer(data, "store"):
        pass
    for name in ("archive", "models", "bundle"):
        (data / name).mkdir()
        (data / name / "kept").write_text(name)
    return data


@pytest.fixture
def data(service: Path, tmp_path: Path) -> Path:
    """Return a copy of it, for a test to do with as it likes. A store is mostly holes."""
    command = ["cp", "--archive", "--sparse=always", str(service), str(tmp_path / "data")]
    subprocess.run(command, check=True, timeout=COMMAND_S)
    return tmp_path / "data"


def give_old_schema(data: Path) -> None:
    """Let the store be one of an older version."""
    shutil.rmtree(data / "store")
    old = open_store(f"lmdb://{data}/store", schema=OLD_SCHEMA)
    old.write([(7, b"a state of another form")], [], open_ends(data))
    old.close()


def open_ends(data: Path) -> int:
    log = open_log(f"file://{data}/log", read_only=True)
    end = log.ends()[1]
    log.close()
    return end


def test_states_of_another_schema_are_refused_by_name(data: Path) -> None:
    give_old_schema(data)
    with pytest.raises(StoreStale, match=f"{OLD_SCHEMA}, not {SCHEMA_VERSION}"):
        open_store(f"lmdb://{data}/store", schema=SCHEMA_VERSION, read_only=True)


def test_upgrade_builds_beside_and_switches_and_goes_back(service: Path, data: Path) -> None:
    give_old_schema(data)
    wanted = keys(data / "log")
    with featurizer(data, "store-new"):
        # The old one is in use meanwhile, and whole.
        assert states(data / "store", [7], OLD_SCHEMA) == {7: b"a state of another form"}
    (data / "store").rename(data / "store-old")
    (data / "store-new").rename(data / "store")
    switched = states(data / "store", wanted)
    assert switched == states(service / "store", wanted)
    assert len(switched) > 100
    with featurizer(data, "store"):  # the new version takes it as it is
        pass
    assert states(data / "store", wanted) == switched
    (data / "store").rename(data / "store-new")
    (data / "store-old").rename(data / "store")
    assert states(data / "store", [7], OLD_SCHEMA) == {7: b"a state of another form"}


def back_up(data: Path, backup: Path) -> None:
    backup.mkdir()
    for name in ("log", "archive", "models", "bundle"):
        shutil.copytree(data / name, backup / name)


def test_what_is_restored_folds_to_the_same_states(data: Path, tmp_path: Path) -> None:
    with featurizer(data, "store"):  # it runs while the copy is made
        back_up(data, tmp_path / "backup")
    restored = Path(shutil.copytree(tmp_path / "backup", tmp_path / "restored"))
    with featurizer(restored, "store"):
        pass
    assert entries(restored / "log") == entries(data / "log")
    wanted = keys(data / "log")
    assert states(restored / "store", wanted) == states(data / "store", wanted)
    for name in ("archive", "models", "bundle"):
        assert (restored / name / "kept").read_text() == name


def test_a_copy_that_was_cut_off_is_good_up_to_its_last_whole_frame(
    data: Path, tmp_path: Path
) -> None:
    back_up(data, tmp_path / "backup")
    newest = max((tmp_path / "backup" / "log").glob(f"*{frames_suffix(data)}"))
    size = newest.stat().st_size
    with newest.open("r+b") as file:
        file.truncate(size - CLOSING_BYTES - 10)
    with featurizer(tmp_path / "backup", "store"):
        pass
    whole, kept = entries(data / "log"), entries(tmp_path / "backup" / "log")
    assert 0 < len(kept) < len(whole)
    assert kept == whole[: len(kept)]


def frames_suffix(data: Path) -> str:
    """Return the ending of a segment's name: that of the largest file of the log."""
    return max((data / "log").iterdir(), key=lambda path: path.stat().st_size).suffix


@contextmanager
def scorer(data: Path, secret: Path) -> Iterator[Connected]:
    """Serve on the log and the store of a folder, beside its featurizer."""
    ready = data / "scorer.ready"
    ready.unlink(missing_ok=True)
    with featurizer(data, "store"), process(
        data / "scorer.said", "fraudsvc", "serve", "--log", f"file://{data}/log",
        "--store", f"lmdb://{data}/store", "--bundle", str(data / "bundle"),
        "--public-key", str(data / "key.pub"), "--archive", str(data / "archive"),
        "--address", "127.0.0.1:0", "--max-age-days", "0", "--budget-ms", "60000",
        "--wait-ms-max", "60000", "--id-secret", str(secret), "--ready-file", str(ready),
    ) as role:  # fmt: skip
        role.wait_for(ready)
        with connected(int(ready.read_text())) as client:
            yield client
        assert role.stop() == 0


def score(client: Connected, payment: transaction_pb2.Transaction) -> decision_pb2.Assessment:
    answer = client.stub.Score(pb.ScoreRequest(transaction=payment), timeout=COMMAND_S).assessment
    answer.ClearField("time_used")
    kept: decision_pb2.Assessment = answer
    return kept


def replayed(data: Path, log: Path, secret: Path, *span: str) -> int:
    """Make decisions again that must come out the same; return how many."""
    command = [
        sys.executable, "-m", "fraudsvc", "replay", "--data", str(data), "--log", f"file://{log}",
        "--id-secret", str(secret), "--processes", "1", "--json", *span,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return int(json.loads(done.stdout)["same"])


def rotate(data: Path) -> str:
    """Take the steps 3 to 6 of the page; return what `rekey` says."""
    command = [
        sys.executable, "-m", "fraudsvc", "rekey", "--log", f"file://{data}/log",
        "--new-log", f"file://{data}/log-new", "--id-secret", str(data / "id.secret"),
        "--new-id-secret", str(data / "id-new.secret"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=True)
    with featurizer(data, "store-new", "log-new"):
        pass
    (data / "before").mkdir()
    for old, new in (
        ("log", "before/log"), ("store", "before/store"), ("log-new", "log"),
        ("store-new", "store"), ("id.secret", "before/id.secret"), ("id-new.secret", "id.secret"),
    ):  # fmt: skip
        (data / old).rename(data / new)
    return done.stdout


@pytest.mark.timeout(900)  # on a machine that was just set up every kernel is compiled
def test_the_id_secret_is_changed_and_every_answer_stays(tmp_path: Path, trained: Trained) -> None:
    data, payments = tmp_path / "data", Payments()
    data.mkdir()
    (data / "bundle").symlink_to(trained.bundle_path)
    (data / "key.pub").write_bytes(trained.public_key)
    secrets = [data / "id.secret", data / "id-new.secret"]
    for i, secret in enumerate(secrets):
        secret.write_bytes(bytes([i + 1]) * 16)
    sent = [payments.one() for _ in range(20)]
    with scorer(data, secrets[0]) as client:
        answers = [score(client, payment) for payment in sent]
        label = payments.label(sent[3].transaction_id)
        client.stub.ReportLabels(pb.ReportLabelsRequest(labels=[label]), timeout=COMMAND_S)
    end = open_ends(data)
    assert f"before position {end} are of the old secret" in rotate(data)
    with scorer(data, data / "id.secret") as client:
        assert [score(client, payment) for payment in sent] == answers
        asked = pb.GetDecisionRequest(decision_id=answers[0].decision_id)
        assert client.stub.GetDecision(asked, timeout=COMMAND_S).decision.transaction == sent[0]
        topics = [each.topic for each in entries(data / "log")]
        assert topics.count(Topic.DECISIONS) == len(sent)
        later = [score(client, payments.one()) for _ in range(5)]
        sent[0].amount_minor += 1
        with pytest.raises(grpc.RpcError) as refused:
            score(client, sent[0])
        assert refused.value.code() == grpc.StatusCode.ALREADY_EXISTS
    assert all(each.rung == decision_pb2.RUNG_FULL for each in (*answers, *later))
    assert replayed(data, data / "log", data / "id.secret") == len(answers) + len(later)
    before = data / "before"
    assert replayed(data, before / "log", before / "id.secret") == len(answers)


def test_the_pages_name_what_the_tests_walk_through() -> None:
    names = {page.name for page in PAGES}
    assert names == {
        "README.md", "backup-restore.md", "roll-back.md", "rotate-id-key.md", "upgrade-schema.md"
    }  # fmt: skip
    index = (ROOT / "docs" / "runbooks" / "README.md").read_text()
    assert set(re.findall(r"\]\(([\w-]+\.md)\)", index)) == names - {"README.md"}
