"""How fast the live loop closes, with every role a process of its own, over gRPC.

From a label's answer to the first decision by a bundle that learnt from it, few-shot expert and
residual each; and from a bad bundle's promotion by hand to the first decision without it.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from fraud.v1 import fraud_service_pb2 as pb
from fraud.v1 import label_pb2, model_event_pb2, transaction_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from featurizer.adapters import open_log
from featurizer.eventlog import Topic
from featurizer.features import SCHEMA_VERSION
from fraudsvc.models_command import ModelsOptions, run_models
from tests.bench.bench_score import live_requests, prepare
from tests.bench.claims import claim
from tests.bench.serving import CLIENT_CPU, SERVER_CPU, started
from tests.conftest import Connected, connected, score_patiently
from tests.live_loop import APPROVE
from trainer.bundle import load_content, write_bundle
from trainer.shelf import Shelf
from trainer.thresholds import Thresholds

TRAFFIC, FRAUDS = 1_200, 12
EXPERT_S_MAX, RESIDUAL_S_MAX, ROLLBACK_S_MAX = 5.0, 120.0, 60.0
WAIT_S = 400.0
CALL_S = 10.0
PAUSE_S = 0.02
PROMOTED = model_event_pb2.MODEL_CHANGE_PROMOTED


@dataclass
class Seen:
    """When each model version was first in an answer, by the monotonic clock."""

    client: Connected
    live: Iterator[pb.ScoreRequest]  # a world's payments, in their order
    first: dict[str, float] = field(default_factory=dict)
    last: str = ""
    now: Timestamp = field(default_factory=Timestamp)  # of the last payment
    stop: threading.Event = field(default_factory=threading.Event)

    def send(self) -> None:
        """Send payments one after the other until told to stop."""
        while not self.stop.wait(PAUSE_S):
            self.score()

    def score(self, number: int | None = None) -> tuple[str, int]:
        """Score a payment, or one of the attack; return its id and the outcome."""
        request = next(self.live)
        if number is not None:
            _attack(request.transaction, number)
        told = score_patiently(self.client, request)
        self.first.setdefault(told.model_version, time.monotonic())
        self.last, self.now = told.model_version, request.transaction.event_time
        return request.transaction.transaction_id, told.outcome

    def report(self, ids: list[str]) -> None:
        """Report payments as fraud, by two analysts in turn."""
        labels = [
            label_pb2.Label(
                transaction_id=each, verdict=label_pb2.VERDICT_FRAUD, label_time=self.now,
                source=label_pb2.LABEL_SOURCE_ANALYST, reporter=f"analyst-{number % 2}",
            )
            for number, each in enumerate(ids)
        ]  # fmt: skip
        self.client.stub.ReportLabels(pb.ReportLabelsRequest(labels=labels), timeout=CALL_S)


def _attack(payment: transaction_pb2.Transaction, number: int) -> None:
    """Make of a payment one of a kind that the world has none of: by customers nobody knows."""
    payment.customer_id = f"mule-{number}"
    payment.card.token = f"mule-card-{number}"
    payment.amount_minor = 2_600 + number
    payment.channel = transaction_pb2.CHANNEL_ECOMMERCE
    payment.cvv_result = transaction_pb2.CVV_RESULT_MATCH
    for each in ("terminal_id", "device_id", "email", "position", "account_created_time"):
        payment.ClearField(each)


@contextlib.contextmanager
def _roles(where: Path) -> Iterator[Connected]:
    places = ["--log", f"file://{where}/log", "--store", f"lmdb://{where}/store"]
    model = ["--bundle", str(where / "bundle"), "--public-key", str(where / "key.pub")]
    run = ["trainer", "run", "--log", f"file://{where}/log", *model, "--key", str(where / "key")]
    serve = ["fraudsvc", "serve", *places, *model, "--address", "127.0.0.1:0", "--max-age-days"]
    with (
        started("featurizer", ["featurizer", "run", *places], where, CLIENT_CPU, nice=10),
        started("serve", [*serve, "0", "--budget-ms", "5000"], where, SERVER_CPU) as scorer,
        started("trainer", run, where, CLIENT_CPU, nice=5),
        connected(scorer.port) as client,
    ):
        yield client


def _promoted(where: Path, layer: str, since: float) -> str | None:
    """Wait for a promotion that learnt a layer; return its version, None where there is none."""
    log = open_log(f"file://{where}/log", read_only=True)
    try:
        position = log.ends()[0]
        while time.monotonic() - since < WAIT_S:
            batch = log.read(position, 4 << 20)
            position = batch.next_position
            for i in (batch.topics == Topic.MODELS).nonzero()[0]:
                value = batch.data[batch.starts[i] : batch.starts[i] + batch.lengths[i]]
                told = model_event_pb2.ModelEvent.FromString(value)
                if told.change == PROMOTED and layer in told.learning.layers:
                    return told.model_version
            time.sleep(PAUSE_S)
        return None
    finally:
        log.close()


def _waited(seen: Seen, version: str | None, since: float) -> float | None:
    """Return the seconds from ``since`` to the first answer by a version, once it is there."""
    while version is not None and version not in seen.first:
        if time.monotonic() - since > WAIT_S:
            return None
        time.sleep(PAUSE_S)
    return None if version is None else seen.first[version] - since


def _rollback_s(where: Path, seen: Seen) -> float | None:
    """Promote a bundle that alerts on nearly all, by hand; return when it is gone again."""
    shelf = Shelf(where / "models", where / "bundle")
    public = (where / "key.pub").read_bytes()
    content = load_content(where / "bundle", schema_version=SCHEMA_VERSION, public_key=public)
    bad = replace(content, thresholds=Thresholds(1e-9, 1.0))
    version = write_bundle(where / "draft", bad, where / "key")
    shelf.place(where / "draft", version)
    options = ModelsOptions(shelf.link, shelf.folder, public, "bench", "to see it taken back")
    with contextlib.closing(open_log(f"file://{where}/log")) as log:
        begin = time.monotonic()
        run_models("promote", [version], options, log)
    if _waited(seen, version, begin) is None:
        return None
    while seen.last == version:
        if time.monotonic() - begin > WAIT_S:
            return None
        time.sleep(PAUSE_S)
    return time.monotonic() - begin


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def rows() -> list[dict[str, object]]:
    """Return one row per claim."""
    with tempfile.TemporaryDirectory() as directory:
        where = Path(directory)
        live_ms = prepare(where)
        with _roles(where) as client:
            seen = Seen(client, iter(live_requests(where / "world.parquet", live_ms)))
            for _ in range(TRAFFIC):
                seen.score()
            attacks = [seen.score(number) for number in range(FRAUDS)]
            missed = [each for each, outcome in attacks if outcome == APPROVE]
            if not missed:
                raise RuntimeError("the base catches all of it: no attack")
            sender = threading.Thread(target=seen.send, daemon=True)
            sender.start()
            seen.report(missed)
            begin = time.monotonic()
            expert_s = _waited(seen, _promoted(where, "expert", begin), begin)
            residual_s = _waited(seen, _promoted(where, "residual", begin), begin)
            rollback_s = _rollback_s(where, seen)
            seen.stop.set()
            sender.join(CALL_S)
    return [
        claim("label reported to the first decision with the new few-shot expert (T1)",
              _rounded(expert_s), "s", at_most=EXPERT_S_MAX),
        claim("label reported to the first decision with the new residual (T2), canary included",
              _rounded(residual_s), "s", at_most=RESIDUAL_S_MAX),
        claim("a bad bundle promoted by hand to the first decision after its rollback",
              _rounded(rollback_s), "s", at_most=ROLLBACK_S_MAX),
    ]  # fmt: skip


if __name__ == "__main__":
    for row in rows():
        print(row)
