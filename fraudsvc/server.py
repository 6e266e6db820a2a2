"""The gRPC shell: decode, call the scorer, encode; health, reflection, shedding, drain.

Owns sockets and threads: Score is answered on the thread that polls (``turns``), all else in a
pool. Must not know what a decision is made of.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import grpc
from fraud.v1 import fraud_service_pb2 as pb
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from fraudsvc.answers import field
from fraudsvc.callers.gate import Gate
from fraudsvc.calls import Call
from fraudsvc.errors import ServiceError, abort, code_of, ending_of
from fraudsvc.requests import read_batch, read_score
from fraudsvc.scorer import ITEMS_AT_ONCE, Scorer
from fraudsvc.scoring import METHOD, Asked, Note, Scoring, failed
from fraudsvc.turns import TurnContext, Turns

SERVICE = pb.DESCRIPTOR.services_by_name["FraudService"].full_name
_log = logging.getLogger(__name__)
_NEVER_NS = 1 << 62
_Request = TypeVar("_Request", bound=Message)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Bounds of the transport.

    ``calls_max`` calls of Score are in the server at once, and as many of all else; one more gets
    RESOURCE_EXHAUSTED, and so does a call that waited ``wait_ms_max``. All else has ``threads``.
    ``streams_max`` is a connection's: more wait in the client, so it must be well above
    ``calls_max`` for a call to be shed and not to be late. On a stop health says so
    ``linger_s`` before connections are told to go elsewhere, and calls in flight have ``drain_s``
    more.
    """

    threads: int = 4
    calls_max: int = 64
    streams_max: int = 2_048
    wait_ms_max: float = 20.0
    message_bytes_max: int = 4 << 20
    score_bytes_max: int = 16 << 10
    metadata_bytes_max: int = 8 << 10
    connections_max: int = 4_096
    handshake_s_max: float = 10.0
    linger_s: float = 0.25
    drain_s: float = 5.0
    reflection: bool = False


class Guard(NamedTuple):
    """What stands before the methods: TLS, and who may call. None is anyone, in clear."""

    credentials: grpc.ServerCredentials | None = None
    gate: Gate | None = None


class _Arrivals(futures.ThreadPoolExecutor):
    """A thread pool that remembers when each call came, so that waiting counts as time used."""

    def __init__(self, threads: int) -> None:
        super().__init__(max_workers=threads, thread_name_prefix="calls")
        self.local = threading.local()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> futures.Future[Any]:
        arrival_ns = time.perf_counter_ns()

        def run() -> Any:
            self.local.arrival_ns = arrival_ns
            return fn(*args, **kwargs)

        return super().submit(run)


def _reader(message: type[_Request]) -> Callable[[bytes], _Request | ServiceError]:
    """Return a deserialiser that gives an error for bytes that are not the message.

    None, or to raise it, would have grpc itself answer INTERNAL.
    """

    def read(data: bytes) -> _Request | ServiceError:
        try:
            return message.FromString(data)
        except DecodeError:
            return ServiceError("MALFORMED_MESSAGE")

    return read


class Servicer:
    """The methods of FraudService over a Scorer."""

    def __init__(self, scorer: Scorer, arrivals: _Arrivals, settings: ServerSettings) -> None:
        self._scorer = scorer
        self._arrivals = arrivals
        self._settings = settings

    def read_score(self, body: bytes, context: TurnContext) -> Asked:
        """Return what is asked of Score. Raises ServiceError where it may not be."""
        if len(body) > self._settings.score_bytes_max:
            raise ServiceError("MALFORMED_MESSAGE")
        transaction, validate_only = read_score(body)
        return Asked(transaction, self._call(context, context.arrival_ns), validate_only)

    def score_batch(self, body: bytes, context: grpc.ServicerContext) -> bytes:
        """Answer ScoreBatch, from bytes to bytes."""
        arrival_ns = self.arrival_ns()
        transactions, validate_only = read_batch(body)
        call = self._call(context, arrival_ns)
        results = self._scorer.score_batch(transactions, call, validate_only=validate_only)
        return b"".join(field(b"\x0a", result) for result in results)

    def report_labels(
        self, request: pb.ReportLabelsRequest | ServiceError, _: grpc.ServicerContext
    ) -> pb.ReportLabelsResponse:
        """Answer ReportLabels."""
        results = self._scorer.report_labels(_given(request).labels)
        return pb.ReportLabelsResponse(results=results)

    def get_decision(
        self, request: pb.GetDecisionRequest | ServiceError, _: grpc.ServicerContext
    ) -> pb.GetDecisionResponse:
        """Answer GetDecision."""
        decision = self._scorer.get_decision(_given(request).decision_id)
        return pb.GetDecisionResponse(decision=decision)

    def arrival_ns(self) -> int:
        """Return when this thread's call came, ns of the monotonic clock."""
        return getattr(self._arrivals.local, "arrival_ns", time.perf_counter_ns())

    def _call(self, context: grpc.ServicerContext | TurnContext, arrival_ns: int) -> Call:
        now_ns = time.perf_counter_ns()
        if now_ns - arrival_ns > self._settings.wait_ms_max * 1e6:
            raise ServiceError("OVERLOADED")
        remaining_s = context.time_remaining()
        deadline_ns = _NEVER_NS if remaining_s is None else now_ns + int(remaining_s * 1e9)
        traceparent = ""
        for name, value in context.invocation_metadata():
            if name == "traceparent":
                traceparent = str(value)[:64]
        return Call(arrival_ns, deadline_ns, traceparent)


def _given(request: _Request | ServiceError) -> _Request:
    if isinstance(request, ServiceError):
        raise request
    return request


def _answering(
    name: str, method: Callable[[Any, grpc.ServicerContext], Any], servicer: Servicer, note: Note
) -> Callable[..., Any]:
    """Return the method with its exceptions turned into statuses; whatever it is, one comes."""

    def run(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            answer = method(request, context)
            note(name, "OK", time.perf_counter_ns() - servicer.arrival_ns())
            return answer
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets a status
            abort(context, failed(name, error, note))

    return run


def _admitting(name: str, method: Callable[[Any, Any], Any], gate: Gate | None) -> Any:
    """Return the method for those who may call it; without a gate the method itself."""
    if gate is None:
        return method

    def run(request: Any, context: Any) -> Any:
        gate.admit(name, context)
        return method(request, context)

    return run


def _guarded(
    name: str,
    method: Callable[[Any, Any], Any],
    servicer: Servicer,
    note: Note,
    gate: Gate | None,
) -> Callable[..., Any]:
    """Return the method as it is served: for those who may call it, and always with an answer."""
    return _answering(name, _admitting(name, method, gate), servicer, note)


class _OperatorsOnly(grpc.ServerInterceptor):
    """Keeps what is beside the service and its health, reflection, to those who may operate."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def intercept_service(
        self, continuation: Callable[[Any], Any], handler_call_details: Any
    ) -> Any:
        handler = continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith((f"/{SERVICE}/", f"/{health.SERVICE_NAME}/")):
            return handler

        def run(requests: Any, context: Any) -> Any:
            try:
                self._gate.admit(method, context)
            except ServiceError as error:
                abort(context, error)
            yield from handler.stream_stream(requests, context)

        return grpc.stream_stream_rpc_method_handler(
            run, handler.request_deserializer, handler.response_serializer
        )


def _handlers(
    servicer: Servicer, note: Note = lambda *_: None, gate: Gate | None = None
) -> grpc.GenericRpcHandler:
    messages: dict[str, tuple[Callable[..., Any], type[Message]]] = {
        "ReportLabels": (servicer.report_labels, pb.ReportLabelsRequest),
        "GetDecision": (servicer.get_decision, pb.GetDecisionRequest),
    }
    handlers: dict[str, Any] = {
        name: grpc.unary_unary_rpc_method_handler(
            _guarded(name, method, servicer, note, gate),
            request_deserializer=_reader(message),
            response_serializer=lambda response: response.SerializeToString(),
        )
        for name, (method, message) in messages.items()
    }
    # Without a deserialiser and a serialiser bytes come in and bytes go out.
    handlers["ScoreBatch"] = grpc.unary_unary_rpc_method_handler(
        _guarded("ScoreBatch", servicer.score_batch, servicer, note, gate)
    )
    return grpc.method_handlers_generic_handler(SERVICE, handlers)


def _scoring(
    scorer: Scorer, servicer: Servicer, note: Note = lambda *_: None, gate: Gate | None = None
) -> Callable[[Sequence[tuple[bytes, TurnContext]]], list[bytes | grpc.Status]]:
    """Return what answers calls of Score."""
    scoring = Scoring(scorer, _admitting(METHOD, servicer.read_score, gate), note)
    return lambda waiting: [
        each if isinstance(each, bytes) else ending_of(each) for each in scoring.answer(waiting)
    ]


class Server:
    """A gRPC server around a scorer; not serving until ``start``.

    ``note`` is told of each call: its method, its code, and how long an answer took in ns.
    """

    def __init__(
        self,
        scorer: Scorer,
        address: str,
        settings: ServerSettings,
        note: Note = lambda *_: None,
        guard: Guard | None = None,
    ) -> None:
        self._settings = settings
        guard = guard or Guard()
        arrivals = _Arrivals(settings.threads)
        options = [
            ("grpc.so_reuseport", 1),
            ("grpc.max_receive_message_length", settings.message_bytes_max),
            ("grpc.max_metadata_size", settings.metadata_bytes_max),
            # Between the two grpc refuses by chance.
            ("grpc.absolute_max_metadata_size", settings.metadata_bytes_max),
            ("grpc.max_concurrent_streams", settings.streams_max),
            ("grpc.max_allowed_incoming_connections", settings.connections_max),
            ("grpc.server_handshake_timeout_ms", int(settings.handshake_s_max * 1000)),
        ]
        interceptors: list[Any] = []
        if guard.gate is not None and settings.reflection:
            interceptors.append(_OperatorsOnly(guard.gate))
        self._server = grpc.server(
            arrivals, options=options, maximum_concurrent_rpcs=settings.calls_max,
            interceptors=interceptors,
        )  # fmt: skip
        servicer = self._servicer = Servicer(scorer, arrivals, settings)
        self._server.add_generic_rpc_handlers((_handlers(servicer, note, guard.gate),))
        full = ServiceError("OVERLOADED")
        self._scores = Turns(
            self._server, f"/{SERVICE}/{METHOD}",
            _scoring(scorer, servicer, note, guard.gate), settings.calls_max,
            ITEMS_AT_ONCE, ending_of(full), lambda: note(METHOD, code_of(full), 0),
        )  # fmt: skip
        self._health = health.HealthServicer(experimental_non_blocking=True)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        if settings.reflection:
            names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
        self.port: int = (
            self._server.add_insecure_port(address)
            if guard.credentials is None
            else self._server.add_secure_port(address, guard.credentials)
        )

    def start(self) -> None:
        """Open the port and say so in health."""
        self._server.start()
        self._scores.start()
        self._set_health(health_pb2.HealthCheckResponse.SERVING)

    def stop(self) -> None:
        """Send new calls elsewhere, finish those in flight within the drain time, and close.

        Who asks after health stays away before connections close; until then calls are answered,
        as one that is refused is made again no sooner than the budget allows. grpc cancels those
        that cross its goodbye on the wire.
        """
        self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        time.sleep(self._settings.linger_s)
        self._server.stop(self._settings.drain_s).wait()

    def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in ("", SERVICE):
            self._health.set(name, status)
