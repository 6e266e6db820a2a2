"""Which trace a call belongs to: the caller's, by its W3C traceparent, or none yet."""

from __future__ import annotations

import re

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?", re.ASCII)


def trace_id_of(traceparent: str) -> bytes:
    """Return the 32 digits of a traceparent's trace id, b"" where it has none.

    Source: https://www.w3.org/TR/trace-context/, sections 3.2.2 and 4.3.
    """
    found = _TRACEPARENT.fullmatch(traceparent.lower())
    if found is None or found[1] == "0" * 32 or traceparent[:2] == "ff":
        return b""
    return found[1].encode()
