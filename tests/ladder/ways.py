"""A decision on a payment, made in more than one way: each gives the same score and outcome.

Owns what a step of the ladder does. Must not know how it is timed. The states are those that the
history left, and stay: a payment changes nothing, so that every way sees the same.

Features of a payment stand in Redis ready-made, as a feature store would have them; ways that read
the snapshot compute them, which is more work.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import redis
from aiokafka import AIOKafkaProducer
from catboost import CatBoost
from fraud.v1 import decision_pb2, transaction_pb2
from google.protobuf.json_format import MessageToDict
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from featurizer.eventlog import Entry, EventLog, Topic
from featurizer.features import FEATURES, OPS, SCHEMA_VERSION
from featurizer.hashing import IdHasher
from featurizer.records import RECORD, Entity
from featurizer.state import HEADER
from featurizer.store import Store
from featurizer.view import view
from fraudsvc.answers import Stamp, Writer, origin_of
from fraudsvc.assess import PROBABILITY
from fraudsvc.contract import ContractSettings
from fraudsvc.decide import Workspace, decide
from fraudsvc.intake import Intake
from fraudsvc.payment import Payment
from fraudsvc.policy import Policy
from fraudsvc.rungs import FULL
from trainer.bundle import Bundle

NAMES = [feature.name for feature in FEATURES]
ENTITIES = [entity.name.lower() for entity in Entity]
# By entity, where its features stand in the vector.
COLUMNS = {e: [i for i, f in enumerate(FEATURES) if f.entity == e] for e in ENTITIES}
OWN = [i for i, f in enumerate(FEATURES) if f.entity not in COLUMNS]
SEND_S = 10.0
_NO_CAUSE = decision_pb2.RUNG_CAUSE_UNSPECIFIED


@dataclass(frozen=True, slots=True)
class Way:
    """What is done the naive way; a step of the ladder takes one away."""

    dicts: bool = True  # messages become dictionaries, and the event is JSON
    frame: bool = True  # a pandas row is made of the features
    hashes: bool = True  # a Redis hash an entity, a field a feature
    singles: bool = True  # a read an entity
    remote: bool = True  # features from Redis, and not from a mapped snapshot
    catboost: bool = True  # CatBoost's own predict
    awaited: bool = True  # the event is in Kafka before the answer
    spans: bool = True  # a recorded span a step
    unfrozen: bool = True  # the collector looks at everything that was loaded
    unpinned: bool = True  # any core


class Step(NamedTuple):
    """A step of the ladder: what is new in it, and how it decides."""

    name: str
    way: Way


def ladder() -> list[Step]:
    """Return the steps; each differs from the one before in one thing."""
    names = {
        "dicts": "messages read as messages, events as protobuf",
        "frame": "a numpy vector, no pandas row",
        "hashes": "one packed blob an entity",
        "singles": "one MGET for all entities",
        "remote": "a memory-mapped snapshot; features computed from states",
        "catboost": "numba evaluates model, reasons and rules",
        "awaited": "the event goes to the journal, a relay takes it to Kafka",
        "spans": "spans are built after the answer, from times in the event",
        "unfrozen": "gc frozen after warm-up",
        "unpinned": "pinned to a core",
    }
    steps = [Step("naive", Way())]
    done: dict[str, bool] = {}
    for each in fields(Way):
        done[each.name] = False
        steps.append(Step(names[each.name], Way(**done)))
    return steps


class Answer(NamedTuple):
    """What a way came to."""

    probability: float
    outcome: int


class Producer:
    """A Kafka producer on a loop of its own thread, as a synchronous service would have it."""

    def __init__(self, bootstrap: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._producer: Any = self._do(self._started(bootstrap))

    @staticmethod
    async def _started(bootstrap: str) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True)
        await producer.start()
        return producer

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(SEND_S)

    def send(self, topic: str, key: bytes, value: bytes) -> None:
        """Return once the brokers have it."""
        self._do(self._producer.send_and_wait(topic, value, key=key))

    def close(self) -> None:
        """Stop it and its thread."""
        self._do(self._producer.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(SEND_S)
        self._loop.close()


class Places(NamedTuple):
    """What a decision needs: model, policy, states, and where events go."""

    bundle: Bundle
    model: CatBoost
    policy: Policy
    store: Store
    log: EventLog
    features: redis.Redis
    producer: Producer
    topic: str


class Decider:
    """Decides payments, each known by its number."""

    def __init__(self, places: Places) -> None:
        self._at = places
        self._intake = Intake(IdHasher(), ContractSettings(max_age_days=None))
        self._writer = Writer(IdHasher().key, 1)
        self._space = Workspace()
        self._record = np.zeros(1, RECORD)
        self._ids = self._record.view(np.int64).reshape(1, -1)
        self._vectors: list[Any] = []
        self._origin = origin_of("", "ladder")
        self.exported = InMemorySpanExporter()
        self._tracing = TracerProvider()
        self._tracing.add_span_processor(BatchSpanProcessor(self.exported))
        self._tracer = self._tracing.get_tracer("ladder")

    def close(self) -> None:
        """End the thread that exports spans."""
        self._tracing.shutdown()

    def prepare(self, transactions: Sequence[bytes], now_ms: int) -> None:
        """Put the features of each payment where the remote ways find them."""
        pipe = self._at.features.pipeline(transaction=False)
        for number, transaction in enumerate(transactions):
            payment = self._take(transaction, now_ms)
            self._view_snapshot(payment)
            vector = self._space.vector.copy()
            self._vectors.append(vector)
            for entity, columns in COLUMNS.items():
                pipe.set(f"blob:{number}:{entity}", vector[columns].tobytes())
                pairs: dict[Any, Any] = {NAMES[i]: repr(float(vector[i])) for i in columns}
                pipe.hset(f"hash:{number}:{entity}", mapping=pairs)
        pipe.execute()

    def decide(self, number: int, body: bytes, now_ms: int, way: Way) -> Answer:
        """Decide a payment the given way, all but what is of the process (gc, core)."""
        span = self._tracer.start_as_current_span if way.spans else _no_span
        with span("score"):
            with span("parse"):
                transaction, content = self._parsed(body, way)
                payment = self._take(transaction, now_ms)
            with span("features"):
                vector = self._features(number, payment, way)
            if not way.catboost:
                return self._ours(payment, way, span)
            with span("model"):
                logit = self._logit(vector, way)
                probability = self._at.bundle.calibration.probability(logit)
            with span("policy"):
                limits = self._at.bundle.thresholds
                ruling = self._at.policy.rule(
                    payment, self._space.vector, probability, (limits.review, limits.decline)
                )
            with span("event"):
                event = self._event(payment, content, probability, ruling.outcome, way)
                self._send(payment, event, way)
        return Answer(probability, ruling.outcome)

    def _take(self, transaction: bytes, now_ms: int) -> Payment:
        return self._intake.take(transaction, now_ms, self._record, self._ids)

    def _parsed(self, body: bytes, way: Way) -> tuple[bytes, dict[str, Any]]:
        if not way.dicts:
            return body, {}
        message = transaction_pb2.Transaction.FromString(body)
        return message.SerializeToString(deterministic=True), MessageToDict(message)

    def _features(self, number: int, payment: Payment, way: Way) -> Any:
        """Return the features: a dictionary, or the workspace's vector."""
        if not way.remote:
            self._load_snapshot(payment)
            if way.catboost:
                self._view(payment)
            return self._space.vector
        vector, at = self._space.vector, self._at.features
        own = self._vectors[number]
        vector[OWN] = own[OWN]
        if way.hashes:
            found: dict[str, float] = {NAMES[i]: float(own[i]) for i in OWN}
            for entity in ENTITIES:
                pairs: Any = at.hgetall(f"hash:{number}:{entity}")
                found.update((name.decode(), float(value)) for name, value in pairs.items())
            vector[:] = [found[name] for name in NAMES]
            return found
        keys = [f"blob:{number}:{entity}" for entity in ENTITIES]
        blobs: Any = [at.get(key) for key in keys] if way.singles else at.mget(keys)
        for entity, blob in zip(ENTITIES, blobs, strict=True):
            vector[COLUMNS[entity]] = np.frombuffer(blob, np.float32)
        return vector

    def _logit(self, features: Any, way: Way) -> float:
        row: Any = self._space.vector.reshape(1, -1)
        if way.frame:
            row = pd.DataFrame([features], columns=NAMES).astype(np.float32)
            row.columns = self._at.model.feature_names_
        return float(self._at.model.predict(row, prediction_type="RawFormulaVal")[0])

    def _event(
        self, payment: Payment, content: dict[str, Any], probability: float, outcome: int, way: Way
    ) -> bytes:
        if way.dicts:
            values = [float(value) for value in self._space.vector]
            facts = {"transaction": content, "score": probability, "outcome": outcome}
            return json.dumps({**facts, "features": dict(zip(NAMES, values, strict=True))}).encode()
        decision = decision_pb2.Decision(transaction=payment.message)
        decision.assessment.score = probability
        decision.assessment.outcome = outcome  # type: ignore[assignment]
        decision.assessment.schema_version = SCHEMA_VERSION
        decision.features = self._space.vector.tobytes()
        return decision.SerializeToString()

    def _send(self, payment: Payment, event: bytes, way: Way) -> None:
        customer = int(payment.record["entities"][0][0])
        if way.awaited:
            key = customer.to_bytes(8, "little", signed=True)
            self._at.producer.send(self._at.topic, key, event)
            return
        entries = [
            Entry(Topic.TRANSACTIONS, customer, payment.record.tobytes()),
            Entry(Topic.DECISIONS, customer, event),
        ]
        self._at.log.append([entries])

    def _load_snapshot(self, payment: Payment) -> None:
        keys = payment.record["entities"][0].tolist()
        rows = self._space.rows
        rows[:, :HEADER] = 0
        snapshot = self._at.store.snapshot()
        try:
            for row, key, blob in zip(rows, keys, snapshot.get_many(keys), strict=True):
                if key and blob is not None:
                    row.view(np.uint8)[: len(blob)] = blob
        finally:
            snapshot.close()

    def _view(self, payment: Payment) -> None:
        space = self._space
        payment.record["flags"] |= view(
            space.rows, payment.record[0], OPS, space.lines, space.vector
        )

    def _view_snapshot(self, payment: Payment) -> None:
        self._load_snapshot(payment)
        self._view(payment)

    def _ours(self, payment: Payment, way: Way, span: Callable[[str], Any]) -> Answer:
        """Decide as a scorer does, from states that are loaded."""
        with span("model and policy"):
            draft = decide(
                payment, payment.record, self._space, self._at.bundle, self._at.policy, FULL,
                _NO_CAUSE,
            )  # fmt: skip
        with span("event"):
            stamp = Stamp(1, b"", 0, payment.received_ms, 0, self._origin, True)
            space = self._space
            event, _ = self._writer.write(
                draft, stamp, payment.data, space.body, space.reasons, space.figures
            )
            self._send(payment, event, way)
        return Answer(self._space.figures.item(PROBABILITY), draft.outcome)


def _no_span(_: str) -> contextlib.nullcontext[None]:
    return contextlib.nullcontext()
