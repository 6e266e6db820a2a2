"""What a client is told when a call or an item fails, and nothing more.

Owns the table of reasons and how a ServiceError becomes a google.rpc.Status or an ItemError.
Must not know what is checked, and never passes on the text of an internal exception.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import grpc
from fraud.v1 import fraud_service_pb2 as service_pb
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import (  # type: ignore[import-untyped]
    code_pb2,
    error_details_pb2,
    status_pb2,
)
from grpc_status import rpc_status  # type: ignore[import-untyped]

DOMAIN = "fraudsvc"
RETRY_DELAY_MS = 100  # two budgets: long enough for a burst to pass, short enough for a payer


class Violation(NamedTuple):
    """One field at fault; ``description`` never holds the field's value."""

    field: str
    description: str
    card_number: bool = False


class ReasonSpec(NamedTuple):
    """One row of REASONS: the google.rpc.Code, the client's message, and when it happens."""

    code: int
    message: str
    when: str


REASONS: dict[str, ReasonSpec] = {
    "INVALID_TRANSACTION": ReasonSpec(
        code_pb2.INVALID_ARGUMENT,
        "the transaction is not valid",
        "a field of a transaction is missing, malformed, too long or out of range",
    ),
    "INVALID_LABEL": ReasonSpec(
        code_pb2.INVALID_ARGUMENT,
        "the label is not valid",
        "a field of a label is missing, malformed, too long or out of range",
    ),
    "CARD_NUMBER_REFUSED": ReasonSpec(
        code_pb2.INVALID_ARGUMENT,
        "a text looks like a card number",
        "a text holds 13 to 19 digits of a known issuer range with a right check digit",
    ),
    "MALFORMED_MESSAGE": ReasonSpec(
        code_pb2.INVALID_ARGUMENT,
        "the message cannot be read: not protobuf, or a text that is not UTF-8",
        "the bytes of the request are not the message, or a string is not UTF-8",
    ),
    "BATCH_TOO_LARGE": ReasonSpec(
        code_pb2.INVALID_ARGUMENT,
        "too many items in one call",
        "a batch holds more than the 1,024 items that the contract states",
    ),
    "INVALID_DECISION_ID": ReasonSpec(
        code_pb2.INVALID_ARGUMENT,
        "decision_id is not one of this service",
        "the id asked for is not a UUID of version 8",
    ),
    "REQUEST_ID_REUSED": ReasonSpec(
        code_pb2.ALREADY_EXISTS,
        "request_id was used for another transaction",
        "a request_id comes again with another payload (AIP-155)",
    ),
    "DECISION_NOT_FOUND": ReasonSpec(
        code_pb2.NOT_FOUND,
        "there is no such decision on this host",
        "the id is well formed, and the log does not hold it or no longer does",
    ),
    "UNAUTHENTICATED": ReasonSpec(
        code_pb2.UNAUTHENTICATED,
        "nobody is named by a certificate or a token that is good",
        "callers are told apart, and the call has neither a certificate nor a good token",
    ),
    "NOT_ALLOWED": ReasonSpec(
        code_pb2.PERMISSION_DENIED,
        "the caller may not call this method",
        "the caller is unknown to the file of callers, or lacks the method's role",
    ),
    "RATE_LIMITED": ReasonSpec(
        code_pb2.RESOURCE_EXHAUSTED,
        "more calls than this caller may make; wait and send again",
        "the caller's rate in the file of callers is used up",
    ),
    "OVERLOADED": ReasonSpec(
        code_pb2.RESOURCE_EXHAUSTED,
        "too many calls at once; wait and send again",
        "the bound on calls in flight is reached (rung SHED)",
    ),
    "DEADLINE_EXCEEDED": ReasonSpec(
        code_pb2.DEADLINE_EXCEEDED,
        "the deadline passed before an answer was made",
        "the caller's deadline had passed when the call was taken up",
    ),
    "LOG_UNAVAILABLE": ReasonSpec(
        code_pb2.UNAVAILABLE,
        "the decision cannot be recorded now, so none was made",
        "the event log refuses an append: full disk, closed, damaged",
    ),
    "INTERNAL": ReasonSpec(
        code_pb2.INTERNAL,
        "internal error; the server's log has the details under the call's trace id",
        "a bug",
    ),
}


class ServiceError(Exception):
    """A failure with a reason of REASONS, and the fields at fault if any.

    Raises KeyError for a reason that is not in the table.
    """

    def __init__(self, reason: str, violations: Sequence[Violation] = ()) -> None:
        super().__init__(reason)
        self.reason = reason
        self.spec = REASONS[reason]
        self.violations = tuple(violations)

    @property
    def message(self) -> str:
        """What a client reads: the table's sentence and the first field at fault."""
        if not self.violations:
            return self.spec.message
        first = self.violations[0]
        return f"{self.spec.message}: {first.field} {first.description}"


def refusal(reason: str, violations: Sequence[Violation]) -> ServiceError:
    """Return the error for fields at fault: ``reason``, or CARD_NUMBER_REFUSED if any is one."""
    if any(violation.card_number for violation in violations):
        reason = "CARD_NUMBER_REFUSED"
    return ServiceError(reason, violations)


def from_exception(error: Exception) -> ServiceError:
    """Return the error itself when it is a ServiceError, else INTERNAL without its text."""
    return error if isinstance(error, ServiceError) else ServiceError("INTERNAL")


def status_of(error: ServiceError) -> status_pb2.Status:
    """Return the Status: one ErrorInfo, BadRequest for fields, RetryInfo when overloaded."""
    details = [_packed(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN))]
    if error.violations:
        fields = [
            error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description)
            for v in error.violations
        ]
        details.append(_packed(error_details_pb2.BadRequest(field_violations=fields)))
    if error.spec.code == code_pb2.RESOURCE_EXHAUSTED:
        delay = duration_pb2.Duration(nanos=RETRY_DELAY_MS * 1_000_000)
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status_pb2.Status(code=error.spec.code, message=error.message, details=details)


def item_error(error: ServiceError) -> service_pb.ItemError:
    """Return the same facts for one item of a batch."""
    return service_pb.ItemError(
        code=error.spec.code,
        message=error.message,
        reason=error.reason,
        field_violations=[
            service_pb.FieldViolation(field=v.field, description=v.description)
            for v in error.violations
        ],
    )


def code_of(error: ServiceError) -> str:
    """Return the name of the code that the error's call ends with."""
    return str(code_pb2.Code.Name(REASONS[error.reason].code))


def ending_of(error: ServiceError) -> grpc.Status:
    """Return the status in gRPC's form."""
    ending: grpc.Status = rpc_status.to_status(status_of(error))
    return ending


def abort(context: grpc.ServicerContext, error: ServiceError) -> NoReturn:
    """End the call with the error's status; raises, as grpc's own abort does."""
    context.abort_with_status(ending_of(error))
    raise AssertionError("abort_with_status always raises")


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
