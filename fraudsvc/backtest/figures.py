"""What a change would have decided: rows, labels, and the figures made of both.

Owns what is counted and how. A label counts as of a moment; of several on one payment the stronger
source's stands, of one source the newest. What nobody has said anything of counts as nothing. Must
not know how anything was decided. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from fraud.v1 import decision_pb2, transaction_pb2
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from numpy.typing import NDArray

from trainer.labelled import FRAUD, LEGITIMATE, STRENGTH

APPROVE, REVIEW, DECLINE = (
    decision_pb2.OUTCOME_APPROVE,
    decision_pb2.OUTCOME_REVIEW,
    decision_pb2.OUTCOME_DECLINE,
)
OUTCOMES = {APPROVE: "approve", REVIEW: "review", DECLINE: "decline"}
DAY_MS = 86_400_000
# A decision decided again. ``before`` is the outcome on the log, ``after`` that of the change, 0
# where it could not be decided again; amounts are cents of the reference currency.
ROW = np.dtype(
    [
        ("transaction", "<i8"),
        ("position", "<i8"),
        ("received_ms", "<i8"),
        ("amount_ref", "<i8"),
        ("mcc", "<u2"),
        ("region", "<u2"),
        ("channel", "u1"),
        ("rung", "u1"),
        ("before", "u1"),
        ("after", "u1"),
    ]
)
# A label of the log.
SAID = np.dtype(
    [
        ("transaction", "<i8"),
        ("position", "<i8"),
        ("known_ms", "<i8"),
        ("verdict", "u1"),
        ("source", "u1"),
    ]
)
_BANDS = (1_000, 5_000, 20_000, 100_000)  # upper ends of amount bands, cents
SEGMENTS_MAX = 12  # of one kind; the rest are put together


class Cut(NamedTuple):
    """Up to when a label counts: by its time (ms since 1970) and by its position on the log."""

    known_ms: int = 1 << 62
    position: int = 1 << 62


def verdicts(rows: NDArray[Any], labels: NDArray[Any], cut: Cut) -> NDArray[np.uint8]:
    """Return uint8[n]: what is known of each row (ROW[n]) at a cut; 0 for nothing."""
    told = labels[(labels["known_ms"] < cut.known_ms) & (labels["position"] < cut.position)]
    strength = np.array([STRENGTH[source] for source in range(len(STRENGTH))])[told["source"]]
    told = told[np.lexsort((told["position"], told["known_ms"], strength, told["transaction"]))]
    newest = np.append(told["transaction"][1:] != told["transaction"][:-1], True)[: len(told)]
    told = told[newest]
    places = np.searchsorted(told["transaction"], rows["transaction"])
    found = np.zeros(len(rows), np.uint8)
    inside = places < len(told)
    inside[inside] = told["transaction"][places[inside]] == rows["transaction"][inside]
    found[inside] = told["verdict"][places[inside]]
    return found


def figures(rows: NDArray[Any], known: NDArray[np.uint8], side: str) -> dict[str, Any]:
    """Return what one side (``before`` or ``after``) comes to; money in reference units."""
    outcome, money = rows[side], rows["amount_ref"] / 100.0
    fraud, good = known == FRAUD, known == LEGITIMATE
    caught, missed = fraud & (outcome != APPROVE), fraud & (outcome == APPROVE)
    declined = outcome == DECLINE
    return {
        "declines": int(declined.sum()),
        "reviews": int((outcome == REVIEW).sum()),
        "fraud_caught": int(caught.sum()),
        "fraud_caught_money": round(float(money[caught].sum()), 2),
        "fraud_missed": int(missed.sum()),
        "fraud_missed_money": round(float(money[missed].sum()), 2),
        "false_declines": int((good & declined).sum()),
        "false_declines_money": round(float(money[good & declined].sum()), 2),
        "declines_of_unknown": int((declined & ~fraud & ~good).sum()),
        "reviews_of_good": int((good & (outcome == REVIEW)).sum()),
    }


def compared(rows: NDArray[Any], known: NDArray[np.uint8]) -> dict[str, Any]:
    """Return both sides of some rows, and how many of them changed."""
    return {
        "decisions": len(rows),
        "changed": int((rows["before"] != rows["after"]).sum()),
        "before": figures(rows, known, "before"),
        "after": figures(rows, known, "after"),
    }


def changes(rows: NDArray[Any]) -> dict[str, dict[str, int]]:
    """Return how many went from each outcome to each."""
    return {
        was: {
            name: int(((rows["before"] == old) & (rows["after"] == new)).sum())
            for new, name in OUTCOMES.items()
        }
        for old, was in OUTCOMES.items()
    }


def by_day(rows: NDArray[Any]) -> list[dict[str, Any]]:
    """Return per day (UTC) the decisions, and reviews and declines of both sides."""
    days = rows["received_ms"] // DAY_MS
    found = []
    for day in np.unique(days):
        of_day = rows[days == day]
        counts = {
            f"{name}_{side}": int((of_day[side] == outcome).sum())
            for side in ("before", "after")
            for outcome, name in ((REVIEW, "reviews"), (DECLINE, "declines"))
        }
        date = str(np.datetime64(int(day), "D"))
        found.append({"day": date, "decisions": len(of_day), **counts})
    return found


def _segments(rows: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the kinds of segment, and the name of each row's."""
    channels = [name.removeprefix("CHANNEL_").lower() for name in _names(transaction_pb2.Channel)]
    yield "channel", np.array(channels)[rows["channel"]]
    names = [f"up to {upper // 100:,}" for upper in _BANDS] + [f"above {_BANDS[-1] // 100:,}"]
    yield "amount", np.array(names)[np.searchsorted(_BANDS, rows["amount_ref"])]
    rungs = [name.removeprefix("RUNG_").lower() for name in _names(decision_pb2.Rung)]
    yield "rung", np.array(rungs)[rows["rung"]]
    yield "merchant category", _texts(rows["mcc"], lambda code: f"{code:04}" if code else "none")
    yield "merchant region", _texts(rows["region"], _region)


def _names(kind: EnumTypeWrapper) -> list[str]:
    """Return an enum's names in the order of their numbers, which begin at 0."""
    return [kind.Name(number) for number in sorted(kind.values())]


def _region(number: int) -> str:
    return chr(64 + number // 27) + chr(64 + number % 27) if number else "none"


def _texts(codes: NDArray[Any], text: Any) -> NDArray[Any]:
    distinct, places = np.unique(codes, return_inverse=True)
    found: NDArray[Any] = np.array([text(int(code)) for code in distinct] or [""])[places]
    return found


def by_segment(rows: NDArray[Any], known: NDArray[np.uint8]) -> dict[str, dict[str, Any]]:
    """Return both sides per segment: channel, amount, rung, merchant category and region."""
    found: dict[str, dict[str, Any]] = {}
    for kind, names in _segments(rows):
        distinct, counts = np.unique(names, return_counts=True)
        largest = distinct[np.argsort(-counts)][:SEGMENTS_MAX]
        own = {str(name): compared(rows[names == name], known[names == name]) for name in largest}
        rest = ~np.isin(names, largest)
        if rest.any():
            own["other"] = compared(rows[rest], known[rest])
        found[kind] = own
    return found


def report(rows: NDArray[Any], labels: NDArray[Any], then: Cut, capacity: float) -> dict[str, Any]:
    """Return everything that a backtest tells, as plain values.

    ``rows`` ROW[n] are all decisions of the range, ``labels`` SAID[m] all of the log. What was
    known then is what counts at ``then``, the end of the range. ``capacity`` is how many reviews
    a day can be done.
    """
    decided = rows[rows["after"] != 0]
    known_then, known_now = verdicts(decided, labels, then), verdicts(decided, labels, Cut())
    days = by_day(decided)
    return {
        "decisions": len(rows),
        "not_decided_again": len(rows) - len(decided),
        "changed": int((decided["before"] != decided["after"]).sum()),
        "changes": changes(decided),
        "labelled_then": int((known_then != 0).sum()),
        "labelled_now": int((known_now != 0).sum()),
        "as_known_then": compared(decided, known_then),
        "as_known_now": compared(decided, known_now),
        "review_capacity_a_day": capacity,
        "days": days,
        "days_over_capacity": {
            side: sum(day[f"reviews_{side}"] > capacity for day in days)
            for side in ("before", "after")
        },
        "segments": by_segment(decided, known_now),
    }
