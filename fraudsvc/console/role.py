"""The console role: one process beside the others that shows what they do.

Owns its loop: follow the log, take spans in, look at meters, and keep the read model bounded. It
runs with low priority and nothing waits for it; pages have that of any process. Must not read the
environment but what it is given.
"""

from __future__ import annotations

import gc
import logging
import queue
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurizer.adapters import INDEX_SCHEMA, FollowedStore, journal_number, open_log
from featurizer.eventlog import LogError
from featurizer.eventlog_file import FileEventLog
from featurizer.features import SCHEMA_VERSION
from featurizer.kept import KeepRule
from featurizer.lags import Lags
from featurizer.metering import (
    Family,
    Meters,
    families_of,
    merged,
    open_meters,
    read_all,
    read_appends,
)
from featurizer.otlp import open_metrics, open_spans
from featurizer.places import StorePlace
from featurizer.spans import Span
from featurizer.store import StoreError
from fraudsvc.console.audit import AuditTrail
from fraudsvc.console.desk import Desk
from fraudsvc.console.desk_command import DeskOptions
from fraudsvc.console.desk_pages import desk_routes
from fraudsvc.console.follower import Follower, Surroundings
from fraudsvc.console.gate import Gate, GateOptions
from fraudsvc.console.health_figures import History
from fraudsvc.console.http import Api, HttpServer
from fraudsvc.console.observations import Observations
from fraudsvc.console.operations import Around, OperationPages, OperationsOptions
from fraudsvc.console.otlp_receiver import OtlpReceiver
from fraudsvc.console.pages import Templates
from fraudsvc.console.priority import yield_thread
from fraudsvc.console.prometheus import Exposition
from fraudsvc.console.readmodel import OTLP, Changes, ReadModel, ReadModelError
from fraudsvc.console.site import site

IDLE_S = 0.2  # many small reads would take the time of those who decide
RETRY_S = 1.0
TICK_S = 1.0
TIDY_S = 60.0
SEND_S = 15.0
INBOX_MAX = 256  # calls of senders whose spans are not written yet
APPEND_WAIT_S = 0.02  # the log shows a frame a moment before its scorer has noted how long it took
_FOLLOWED = ("featurizer", "trainer", "console")  # consumers that tell their position alone
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ConsoleOptions:
    """Where things are, what is kept, and for how long."""

    log: str
    store: StorePlace
    index: str
    read_model: str
    http: str
    otlp: str
    metrics: Path | None
    rule: KeepRule
    access: GateOptions
    operations: OperationsOptions
    desk: DeskOptions = field(default_factory=DeskOptions)
    environment: Mapping[str, str] = field(default_factory=dict)
    ready_file: Path | None = None
    rebuild: bool = False
    decisions_max: int = 1_000_000
    days: float = 30.0


class Finder:
    """Finds the frame of an id (a hash) in the store of a host, or its journal's index."""

    def __init__(self, store: StorePlace, index: str) -> None:
        if store.partitions:
            self._store = FollowedStore(index, schema=INDEX_SCHEMA)
        else:
            self._store = FollowedStore(store.url, schema=SCHEMA_VERSION)

    def __call__(self, identity: int) -> int | None:
        """Return the position of the frame, None where there is none, or no store."""
        try:
            snapshot = self._store.snapshot()
        except StoreError:
            self._store.poll()
            return None
        try:
            return snapshot.find_many([identity])[0]
        finally:
            snapshot.close()

    def close(self) -> None:
        """Let go of the files."""
        self._store.close()


def appends_in(folder: Path | None) -> Callable[[list[int]], dict[int, int]]:
    """Return what tells how long the appends of frames took, by what scorers noted in a folder."""

    def find(frames: list[int]) -> dict[int, int]:
        found: dict[int, int] = {}
        for wait_s in (0.0, APPEND_WAIT_S):
            time.sleep(wait_s)
            noted = list(read_appends(folder)) if folder is not None else []
            for appends in noted:
                rows = appends[np.isin(appends[:, 1], frames)]
                found.update({frame: took for took, frame in rows.tolist()})
            if len(found) >= len(set(frames)) or not any(each.any() for each in noted):
                break
        return found

    return find


class Console:
    """Everything but the servers; ``step`` is called in a loop by one thread."""

    def __init__(
        self, options: ConsoleOptions, log: FileEventLog, model: ReadModel, meters: Meters
    ) -> None:
        self._options = options
        self._log = log
        self._model = model
        self._meters = meters
        self._inbox: queue.Queue[list[Span]] = queue.Queue(INBOX_MAX)
        self._finder = Finder(options.store, options.index)
        self._spans = open_spans(options.environment, self._count)
        around = Surroundings(self._finder, appends_in(options.metrics), self._send)
        journal = f"{journal_number(options.log) & 0xFFFFFFFFFFFFFFFF:016x}"
        self._follower = Follower(log, journal, model, options.rule, Observations(meters), around)
        self._lags = Lags()
        self.history = History()
        self._trouble = ""
        self._tick_s = self._tidy_s = 0.0

    def step(self) -> bool:
        """Do what there is to do; return whether to go on at once."""
        try:
            went = self._follower.step()
            went |= self._write_received()
            self._trouble = ""
        except (LogError, ReadModelError) as error:
            if str(error) != self._trouble:
                _log.error("%s", error)
            self._trouble = str(error)
            time.sleep(RETRY_S)
            return True
        now_s = time.monotonic()
        if now_s >= self._tick_s:
            self._tick_s = now_s + TICK_S
            self._tick(now_s)
        return went

    def take(self, spans: list[Span]) -> bool:
        """Take spans of another process; any thread may. Return false where too many wait."""
        try:
            self._inbox.put_nowait(spans)
        except queue.Full:
            self._count("dropped", len(spans))
            return False
        return True

    def families(self) -> list[Family]:
        """Return all metrics of this host."""
        return families_of(self._values())

    def _values(self) -> NDArray[np.float64]:
        folder = self._options.metrics
        read = [] if folder is None else [each.values for each in read_all(folder)]
        own = [] if folder is not None else [np.array(self._meters.values)]
        return merged([*read, *own])

    def health(self) -> dict[str, Any]:
        """Return whether all is well, and how far behind the log this is."""
        position = self._follower.position
        behind = max(0, self._log.ends()[1] - position)
        _, age_s = self._lags.of(position, time.monotonic())
        status = self._trouble or "ok"
        return {"status": status, "behind_bytes": behind, "behind_seconds": round(age_s, 3)}

    def close(self) -> None:
        """Send what is built and let go of everything."""
        if self._spans is not None:
            self._spans.close()
        self._finder.close()

    def _write_received(self) -> bool:
        received: list[Span] = []
        while not self._inbox.empty():
            received += self._inbox.get_nowait()
        if not received:
            return False
        self._model.write(Changes(spans=received), OTLP)
        self._count("received", len(received))
        for span in received:
            self._send(span)
        return True

    def _send(self, span: Span) -> None:
        if self._spans is not None:
            self._spans.put(span)

    def _count(self, what: str, spans: int) -> None:
        self._meters.add("fraud_spans_total", what, by=spans)

    def _tick(self, now_s: float) -> None:
        """Look how far everyone is, and drop what is too old now and then."""
        self._lags.look(now_s, self._log.ends()[1])
        self._meters.put("fraud_position", "console", value=self._follower.position)
        values = self._values()
        self.history.add(now_s, values)
        told = {f.metric.name: f for f in families_of(values)}["fraud_position"]
        positions = {labels["consumer"]: round(value[0]) for labels, value in told.series}
        for consumer in _FOLLOWED:
            if positions[consumer]:
                behind, age_s = self._lags.of(positions[consumer], now_s)
                self._meters.put("fraud_backlog_bytes", consumer, value=behind)
                self._meters.put("fraud_lag_seconds", consumer, value=age_s)
        if now_s >= self._tidy_s:
            self._tidy_s = now_s + TIDY_S
            oldest_ns = time.time_ns() - round(self._options.days * 86_400 * 1e9)
            self._model.drop_oldest(self._options.decisions_max, oldest_ns)
            self._meters.put("fraud_readmodel_rows", value=self._model.count())


def _open_log(options: ConsoleOptions) -> FileEventLog:
    """Wait for the log, which a scorer makes."""
    told = False
    while True:
        try:
            return open_log(options.log, read_only=True)
        except (LogError, OSError) as error:
            if not told:
                _log.info("no log yet: %s", error)
            told = True
            time.sleep(RETRY_S / 4)


def _send_metrics(console: Console, options: ConsoleOptions, stopping: threading.Event) -> None:
    """Send the metrics by OTLP now and then, where the standard variables say so."""
    sender = open_metrics(options.environment)
    if sender is None:
        return
    start_ns = time.time_ns()
    while not stopping.wait(SEND_S):
        if not sender.send(console.families(), start_ns, time.time_ns()):
            _log.warning("the metrics were not taken")
    sender.close()


def _refuse_itself(options: ConsoleOptions) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        if options.otlp and options.environment.get(name, "").rstrip("/").endswith(options.otlp):
            raise ValueError(f"{name} is this console itself: spans would go round for ever")


def run_console(options: ConsoleOptions) -> int:
    """Run until SIGTERM or SIGINT, which end it at once while it starts; return the exit status.

    Raises ReadModelError, ValueError.
    """
    _refuse_itself(options)
    # To load kernels takes long on a busy machine, and until then there is nothing to finish.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    model = ReadModel(options.read_model)
    model.migrate()
    if options.rebuild:
        model.forget()
    meters = open_meters(options.metrics, "console")
    log = _open_log(options)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    console = Console(options, log, model, meters)
    exposition = Exposition(console.families)
    trail_log, templates = open_log(options.log), Templates()
    trail = AuditTrail(trail_log.append)
    gate = Gate(options.access, options.http, templates, trail)
    api = Api(model, exposition, console.health, trail)
    desk = Desk(model, templates, trail, options.desk, options.log, health=console.health)
    operations = OperationPages(
        templates, Around(model, trail_log, trail, console.history, console.health, desk.streams),
        options.operations,
    )  # fmt: skip
    routes = [*gate.routes(), *api.routes(), *desk_routes(desk), *operations.routes()]
    server = HttpServer(gate.before(site(templates, routes)), options.http)
    gc.freeze()  # to look through all that was imported takes long, most of all at the end
    yield_thread()  # from here on nobody waits
    receiver = OtlpReceiver(options.otlp, console.take) if options.otlp else None
    threading.Thread(
        target=_send_metrics, args=(console, options, stopping), name="metrics", daemon=True
    ).start()
    link = gate.opened(server.port)
    if options.ready_file is not None:
        options.ready_file.write_text(str(server.port))
    _log.info("serving on port %d", server.port)
    if link:
        _log.info("open within %d minutes, once: %s", gate.link_s // 60, link)
    while not stopping.is_set():
        if not console.step():
            stopping.wait(IDLE_S)
    for closing in (server, desk, receiver, console, operations, gate, trail_log, log, model):
        if closing is not None:
            closing.close()
    return 0
