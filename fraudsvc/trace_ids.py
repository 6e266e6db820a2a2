"""Which trace a call belongs to: the caller's, by its W3C traceparent, or a new one."""

from __future__ import annotations

import random


def trace_id_of(traceparent: str, source: random.Random) -> str:
    """Return the trace id of a W3C traceparent, or a new one where there is none."""
    parts = traceparent.split("-")
    if len(parts) >= 4 and len(parts[1]) == 32 and parts[1] != "0" * 32:
        try:
            int(parts[1], 16)
        except ValueError:
            pass
        else:
            return parts[1].lower()
    return f"{source.getrandbits(128) or 1:032x}"
