"""What a decision says, in the order and words in which a person reads it.

Owns how reasons, contributions, norms, velocities and states become rows of a page. Pure: must not
know templates nor where a decision was found.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from fraud.v1 import decision_pb2, transaction_pb2

from featurizer.features import FEATURES, INDEX, NAMES, Feature
from featurizer.records import Entity
from featurizer.slots import WINDOWS, WINDOWS_MS

CONTRIBUTIONS_MAX = 9
MODEL = decision_pb2.REASON_SOURCE_MODEL
_MS_OF = dict(zip(WINDOWS, WINDOWS_MS.tolist(), strict=True))
_VELOCITY = ("customer", "card", "merchant", "terminal", "device", "network")
_MEASURES = ("count", "sum")
_DAY_MS, _HOUR_MS = 86_400_000, 3_600_000


class Norm(NamedTuple):
    """A value beside what is usual: ``text`` says how many times, "" where nobody knows."""

    value: str
    usual: str
    text: str


class Contribution(NamedTuple):
    """What a feature added to the score, in log-odds; ``share`` of the largest, -1 to 1."""

    name: str
    meaning: str
    log_odds: float
    share: float
    norm: Norm


class Hit(NamedTuple):
    """A rule, list or override that matched, or what stood in for a score."""

    code: str
    source: str
    text: str


class Velocity(NamedTuple):
    """How often an entity paid, in windows that do not overlap, the oldest first.

    ``bars`` are (window's begin, payments, times the usual rate).
    """

    entity: str
    bars: tuple[tuple[str, int, float], ...]


class State(NamedTuple):
    """The state of an entity that was read: how many bytes of the log before the decision."""

    entity: str
    version: int
    behind: int


def vector_of(data: bytes) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    """Return packed float32, None where it is of another schema or none."""
    return np.frombuffer(data, "<f4") if len(data) == 4 * len(NAMES) else None


def hits(decision: decision_pb2.Decision) -> list[Hit]:
    """Return what the policy found, apart from the model."""
    return [
        Hit(each.code, _source(each.source), each.text)
        for each in decision.assessment.reasons
        if each.source != MODEL
    ]


def _source(source: int) -> str:
    return decision_pb2.ReasonSource.Name(source).removeprefix("REASON_SOURCE_").lower()


def contributions(decision: decision_pb2.Decision) -> list[Contribution]:
    """Return the features that moved the score most, with value, norm, and the expert's part."""
    vector, parts = vector_of(decision.features), vector_of(decision.contributions)
    if vector is None or parts is None:
        return _from_reasons(decision)
    order = np.argsort(-np.abs(parts), kind="stable")[:CONTRIBUTIONS_MAX]
    largest = float(np.abs(parts).max()) or 1.0
    found = [
        Contribution(
            FEATURES[i].name, FEATURES[i].meaning, float(parts[i]), float(parts[i]) / largest,
            norm_of(FEATURES[i], vector),
        )
        for i in order.tolist() if parts[i]
    ]  # fmt: skip
    if decision.HasField("expert_logit"):
        part = decision.expert_logit
        share = max(-1.0, min(1.0, part / largest))
        meaning = "what the few-shot expert added: it looks like frauds confirmed lately"
        found.insert(0, Contribution("few-shot expert", meaning, part, share, Norm("", "", "")))
    return found


def _from_reasons(decision: decision_pb2.Decision) -> list[Contribution]:
    told = [each for each in decision.assessment.reasons if each.source == MODEL]
    largest = max((abs(each.contribution) for each in told), default=0.0) or 1.0
    return [
        Contribution(
            each.code.lower(), each.text, each.contribution, each.contribution / largest,
            Norm(f"{each.value:.4g}", f"{each.norm:.4g}" if each.HasField("norm") else "", ""),
        )
        for each in told
    ]  # fmt: skip


def norm_of(feature: Feature, vector: np.ndarray[Any, np.dtype[np.float32]]) -> Norm:
    """Return a feature's value and the entity's own norm: what the table names, or a usual rate."""
    value = float(vector[INDEX[feature.name]])
    if feature.norm:
        usual = float(vector[INDEX[feature.norm]])
        unit = FEATURES[INDEX[feature.norm]].unit
        # The value is the ratio to its norm already.
        times = "" if math.isnan(value) else times_text(value)
        return Norm(f"{_plain(value)} ×", _with_unit(usual, unit), times)
    rate = usual_of(feature, vector)
    if rate is None or math.isnan(value):
        return Norm(_with_unit(value, feature.unit), "", "")
    times = times_text(value / rate) if rate > 0 else ""
    return Norm(_with_unit(value, feature.unit), _with_unit(rate, feature.unit), times)


def usual_of(feature: Feature, vector: np.ndarray[Any, np.dtype[np.float32]]) -> float | None:
    """Return what a count or sum in a window would be at the rate of the entity's longest one."""
    measure = next((m for m in _MEASURES if feature.name == _window_name(feature, m)), None)
    if feature.family not in ("velocity", "amount") or measure is None:
        return None
    longest = [w for w in WINDOWS if f"{feature.entity}_{measure}_{w}" in INDEX][-1]
    if longest == feature.window:
        return None
    whole = float(vector[INDEX[f"{feature.entity}_{measure}_{longest}"]])
    if math.isnan(whole):
        return None
    return whole * float(_MS_OF[feature.window] / _MS_OF[longest])


def _window_name(feature: Feature, measure: str) -> str:
    return f"{feature.entity}_{measure}_{feature.window}"


def times_text(ratio: float) -> str:
    """Return how many times the usual a value is."""
    if ratio >= 10:
        return f"{ratio:,.0f} × the usual"
    return f"{ratio:.1f} × the usual" if ratio >= 0.1 else "below the usual"


def _plain(value: float) -> str:
    if math.isnan(value):
        return "unknown"
    if value == round(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}"


def _with_unit(value: float, unit: str) -> str:
    if math.isnan(value):
        return "unknown"
    if unit == "cents":
        return f"{value / 100:,.2f}"
    if unit == "s":
        return _seconds(value)
    if unit == "0/1":
        return "yes" if value else "no"
    short = unit if unit in ("d", "km", "km/h", "h") else ""
    return f"{_plain(value)} {short}".strip()


def _seconds(value: float) -> str:
    for unit, size in (("d", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} s"


def velocities(decision: decision_pb2.Decision) -> list[Velocity]:
    """Return per entity how often it paid lately, exact counts of the decision's own vector."""
    vector = vector_of(decision.features)
    if vector is None:
        return []
    found = []
    for entity in _VELOCITY:
        bars = tuple(_bars(entity, vector))
        if bars and any(count for _, count, _ in bars):
            found.append(Velocity(entity, bars[::-1]))
    return found


def _bars(
    entity: str, vector: np.ndarray[Any, np.dtype[np.float32]]
) -> Iterator[tuple[str, int, float]]:
    """Yield from the newest window back what is in one and not in the next shorter."""
    windows = [w for w in WINDOWS if f"{entity}_count_{w}" in INDEX]
    counts = [float(vector[INDEX[f"{entity}_count_{w}"]]) for w in windows]
    if not windows or any(math.isnan(count) for count in counts):
        return
    rate = counts[-1] / _MS_OF[windows[-1]]
    inner_count, inner_ms = 0.0, 0
    for window, count in zip(windows, counts, strict=True):
        own, length_ms = max(0.0, count - inner_count), _MS_OF[window] - inner_ms
        yield window, round(own), (own / length_ms / rate if rate else 0.0)
        inner_count, inner_ms = count, _MS_OF[window]


def states(decision: decision_pb2.Decision) -> list[State]:
    """Return the version of each entity state that was read, and how far behind it was."""
    return [
        State(Entity(number).name.lower(), version, max(0, decision.log_position - version))
        for number, version in enumerate(decision.entity_versions)
        if number < len(Entity)
    ]


def payment_facts(payment: transaction_pb2.Transaction) -> list[tuple[str, str]]:
    """Return what is known of the payment, by name; what is not is left out."""
    card = " ".join(
        filter(None, (
            _enum(transaction_pb2.CardBrand, payment.card.brand, "CARD_BRAND_"),
            _enum(transaction_pb2.CardFunding, payment.card.funding, "CARD_FUNDING_"),
            payment.card.issuer_region_code,
            f"{payment.card.bin}…{payment.card.last_four}" if payment.card.bin else "",
        ))
    )  # fmt: skip
    merchant = payment.merchant
    place = f"{payment.position.latitude_degrees:.3f}, {payment.position.longitude_degrees:.3f}"
    pairs = (
        ("Customer", payment.customer_id),
        ("Merchant", _joined(merchant.merchant_id, merchant.category_code, merchant.region_code)),
        ("Card", card),
        ("Card token", payment.card.token),
        ("Channel", channel_of(payment.channel)),
        ("Entry", _enum(transaction_pb2.PosEntryMode, payment.pos_entry_mode, "POS_ENTRY_MODE_")),
        ("Terminal", payment.terminal_id),
        ("Device", payment.device_id),
        ("IP address", payment.ip_address),
        ("E-mail", _joined(payment.email.domain, payment.email.address_hash[:12])),
        ("Checks", _checks(payment)),
        ("Regions", _regions(payment)),
        ("Place", place if payment.HasField("position") else ""),
        ("Recurring", "yes" if payment.recurring else ""),
        ("Transaction", payment.transaction_id),
    )
    return [(name, value) for name, value in pairs if value]


def _joined(*parts: str) -> str:
    return " · ".join(filter(None, parts))


def _regions(payment: transaction_pb2.Transaction) -> str:
    billing, shipping = payment.billing_region_code, payment.shipping_region_code
    return _joined(
        f"billing {billing}" if billing else "", f"shipping {shipping}" if shipping else ""
    )


def _checks(payment: transaction_pb2.Transaction) -> str:
    pb = transaction_pb2
    told = (
        ("3-D Secure", pb.ThreeDsResult, payment.three_ds_result, "THREE_DS_RESULT_"),
        ("CVV", pb.CvvResult, payment.cvv_result, "CVV_RESULT_"),
        ("address", pb.AvsResult, payment.avs_result, "AVS_RESULT_"),
        ("issuer", pb.AuthorizationResult, payment.authorization_result, "AUTHORIZATION_RESULT_"),
    )
    words = [(name, _enum(kind, number, prefix)) for name, kind, number, prefix in told]
    return _joined(*(f"{name} {word}" for name, word in words if word))


def channel_of(number: int) -> str:
    """Return a Channel in words."""
    return _enum(transaction_pb2.Channel, number, "CHANNEL_")


def _enum(kind: Any, number: int, prefix: str) -> str:
    if not number:
        return ""
    try:
        name: str = kind.Name(number)
    except ValueError:
        return f"#{number}"
    return name.removeprefix(prefix).replace("_", " ").lower()


def shared_things(payment: transaction_pb2.Transaction) -> list[tuple[int, str]]:
    """Return the (kind, value) of what the payment may have in common with others'."""
    pairs = (
        (Entity.DEVICE, payment.device_id), (Entity.NETWORK, payment.ip_address),
        (Entity.EMAIL, payment.email.address_hash), (Entity.TERMINAL, payment.terminal_id),
        (Entity.CARD, payment.card.token),
    )  # fmt: skip
    return [(int(kind), value) for kind, value in pairs if value]


def likeness(one: bytes, rows: Sequence[Mapping[str, Any]], most: int) -> list[tuple[float, Any]]:
    """Return the rows whose contributions point the same way (cosine), the nearest first.

    ``one`` is a decision's packed contributions, ``rows`` have a Decision as ``body``.
    """
    own = vector_of(one)
    if own is None:
        return []
    bodies = (decision_pb2.Decision.FromString(row["body"]) for row in rows)
    vectors = [vector_of(each.contributions) for each in bodies]
    known = [(row, other) for row, other in zip(rows, vectors, strict=True) if other is not None]
    if not known:
        return []
    others = np.stack([other for _, other in known])
    lengths = np.linalg.norm(others, axis=1) * np.linalg.norm(own)
    near = np.divide(others @ own, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    order = np.argsort(-near, kind="stable")[:most]
    return [(float(near[i]), known[i][0]) for i in order.tolist()]
