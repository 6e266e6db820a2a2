"""Takes spans from other processes, by OTLP over gRPC.

Owns how OTLP's messages become our spans. Must not know where they are kept: whoever takes them
must not block.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service_pb
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from featurizer.spans import Context, Kind, Span, Value
from fraudsvc.cardnumbers import looks_like_card_number

THREADS = 2
CALLS_MAX = 8
MESSAGE_BYTES_MAX = 8 << 20
_METHOD = "Export"
_NAMES = {1: Kind.INTERNAL, 2: Kind.SERVER, 4: Kind.PRODUCER, 5: Kind.CONSUMER}


def _value(value: common_pb2.AnyValue) -> Value:
    """Return a value; lists and maps as JSON's text of what they hold."""
    kind = value.WhichOneof("value")
    if kind in ("string_value", "bool_value", "int_value", "double_value"):
        found: Value = getattr(value, str(kind))
        return found
    if kind == "array_value":
        return json.dumps([_value(each) for each in value.array_value.values])
    if kind == "kvlist_value":
        return json.dumps({each.key: _value(each.value) for each in value.kvlist_value.values})
    return value.bytes_value.hex() if kind == "bytes_value" else ""


def spans_of(request: service_pb.ExportTraceServiceRequest) -> Iterator[Span]:
    """Yield the spans of a request, those without valid ids left out."""
    for of_resource in request.resource_spans:
        told = {each.key: each.value for each in of_resource.resource.attributes}
        service = str(_value(told["service.name"])) if "service.name" in told else ""
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                if len(span.trace_id) == 16 and len(span.span_id) == 8:
                    yield _span(span, service)


def _without_card_number(value: Value) -> Value:
    """Return an attribute as it may be kept: spans of others come in unlooked at."""
    return "not kept" if looks_like_card_number(str(value)) else value


def _span(span: trace_pb2.Span, service: str) -> Span:
    return Span(
        Context(span.trace_id.hex(), span.span_id.hex()), span.parent_span_id.hex(),
        str(_without_card_number(span.name)),
        _NAMES.get(span.kind, Kind.INTERNAL), span.start_time_unix_nano, span.end_time_unix_nano,
        {each.key: _without_card_number(_value(each.value)) for each in span.attributes},
        tuple(Context(each.trace_id.hex(), each.span_id.hex()) for each in span.links), service,
    )  # fmt: skip


class OtlpReceiver:
    """A server of OTLP's trace service. ``take`` gets the spans of each call, and says if it can.

    A sender that hears no is told to come again later. Raises ValueError where ``address`` cannot
    be had.
    """

    def __init__(self, address: str, take: Callable[[list[Span]], bool]) -> None:
        self._take = take
        self._server = grpc.server(
            futures.ThreadPoolExecutor(THREADS, "otlp"), maximum_concurrent_rpcs=CALLS_MAX,
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ],
        )  # fmt: skip
        method: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
            self._export,
            request_deserializer=service_pb.ExportTraceServiceRequest.FromString,
            response_serializer=lambda response: response.SerializeToString(),
        )
        name = service_pb.DESCRIPTOR.services_by_name["TraceService"].full_name
        handler = grpc.method_handlers_generic_handler(name, {_METHOD: method})
        self._server.add_generic_rpc_handlers((handler,))
        try:
            self.port: int = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise ValueError(f"no OTLP at {address}: {error}") from error
        self._server.start()

    def close(self) -> None:
        """Refuse new calls and finish those in flight."""
        self._server.stop(1.0).wait()

    def _export(self, request: Any, context: grpc.ServicerContext) -> Any:
        if not self._take(list(spans_of(request))):
            context.abort(grpc.StatusCode.UNAVAILABLE, "too many spans are waiting")
        return service_pb.ExportTraceServiceResponse()
