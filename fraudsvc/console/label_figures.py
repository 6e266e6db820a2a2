"""What labels say of rules and of analysts: hits, precision, overlap, agreement.

Owns the counting. Pure: rows come in as the read model gives them.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from fraud.v1 import decision_pb2, label_pb2

from trainer.labelled import ANALYST, FRAUD, LEGITIMATE, STRENGTH

Row = Mapping[str, Any]
OVERLAPS_MAX = 30
_CLEAR = (FRAUD, LEGITIMATE)


class Standing(NamedTuple):
    """What stands of a transaction, by whom: the stronger source's word, of one source the last."""

    verdict: int
    source: int
    time_ms: int


def standing(labels: Iterable[Row], sources: Collection[int] = ()) -> dict[str, Standing]:
    """Return what stands of each transaction, of some sources alone where they are named.

    ``labels`` are oldest first; one that is neither fraud nor legitimate takes the earlier one of
    its source back.
    """
    last: dict[str, dict[int, Standing]] = defaultdict(dict)
    for row in labels:
        if sources and row["source"] not in sources:
            continue
        own = last[row["transaction_id"]]
        if row["verdict"] in _CLEAR:
            own[row["source"]] = Standing(row["verdict"], row["source"], row["label_time_ms"])
        else:
            own.pop(row["source"], None)
    return {
        transaction: max(own.values(), key=lambda each: STRENGTH[each.source])
        for transaction, own in last.items()
        if own
    }


def rule_rows(
    rules: Sequence[Row], decisions: Iterable[Row], known: Mapping[str, Standing]
) -> list[dict[str, Any]]:
    """Return of each rule (code, when, action, text) its hits and what labels say of them."""
    hits: dict[str, Counter[str]] = defaultdict(Counter)
    wanted = {rule["code"] for rule in rules}
    for row in decisions:
        told = known.get(row["transaction_id"])
        for code in wanted & set(json.loads(row["codes"])):
            counts = hits[code]
            counts["hits"] += 1
            counts["approved"] += row["outcome"] == decision_pb2.OUTCOME_APPROVE
            if told is not None:
                counts["fraud" if told.verdict == FRAUD else "good"] += 1
    found = []
    for rule in rules:
        counts = hits[rule["code"]]
        labelled = counts["fraud"] + counts["good"]
        found.append(
            {
                "code": rule["code"], "action": rule["action"], "when": rule["when"],
                "hits": counts["hits"], "approved": counts["approved"], "labelled": labelled,
                "fraud": counts["fraud"],
                "precision": counts["fraud"] / labelled if labelled else None,
            }
        )  # fmt: skip
    return found


def overlap_rows(codes: Collection[str], decisions: Iterable[Row]) -> list[dict[str, Any]]:
    """Return pairs of rules that hit the same decisions, the most often first."""
    single: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    for row in decisions:
        hit = sorted(set(codes) & set(json.loads(row["codes"])))
        single.update(hit)
        pairs.update(combinations(hit, 2))
    return [
        {
            "one": one, "other": other, "both": both, "of_one": both / single[one],
            "of_other": both / single[other],
        }
        for (one, other), both in pairs.most_common(OVERLAPS_MAX)
    ]  # fmt: skip


def analyst_rows(labels: Sequence[Row]) -> list[dict[str, Any]]:
    """Return of each analyst how often others, and what became known later, agreed."""
    later = standing(labels, [source for source in STRENGTH if source > 0 and source != ANALYST])
    own = _by_analyst(labels)
    of_transaction: dict[str, dict[str, int]] = defaultdict(dict)
    for (name, transaction), row in own.items():
        of_transaction[transaction][name] = row["verdict"]
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for (name, transaction), row in own.items():
        told = counts[name]
        told["verdicts"] += 1
        if transaction in later:
            same = later[transaction].verdict == row["verdict"]
            told["confirmed" if same else "overturned"] += 1
        for other, verdict in of_transaction[transaction].items():
            if other != name:
                told["same" if verdict == row["verdict"] else "different"] += 1
    return [
        {
            "analyst": name, "verdicts": told["verdicts"], "confirmed": told["confirmed"],
            "overturned": told["overturned"],
            "agreement": _share(told["confirmed"], told["overturned"]),
            "with_others": _share(told["same"], told["different"]),
        }
        for name, told in sorted(counts.items())
    ]  # fmt: skip


def overturned_rows(labels: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the verdicts of analysts that became known to be otherwise, the newest first."""
    later = standing(labels, [source for source in STRENGTH if source > 0 and source != ANALYST])
    found = []
    for (name, transaction), row in _by_analyst(labels).items():
        told = later.get(transaction)
        if told is None or told.verdict == row["verdict"]:
            continue
        found.append(
            {
                "decision_id": row["decision_id"], "analyst": name,
                "said": verdict_name(row["verdict"]), "said_ms": row["label_time_ms"],
                "known": verdict_name(told.verdict), "source": source_name(told.source),
                "known_ms": told.time_ms,
                "amount": None if row["amount_minor"] is None else row["amount_minor"] / 100,
                "currency_code": row["currency_code"],
            }
        )  # fmt: skip
    return sorted(found, key=lambda each: -each["known_ms"])


def _by_analyst(labels: Iterable[Row]) -> dict[tuple[str, str], Row]:
    """Return the last clear word of each analyst on each transaction."""
    found: dict[tuple[str, str], Row] = {}
    for row in labels:
        key = row["reporter"], row["transaction_id"]
        if row["source"] == ANALYST and row["verdict"] in _CLEAR:
            found[key] = row
        elif row["source"] == ANALYST:
            found.pop(key, None)
    return found


def _share(of: int, others: int) -> float | None:
    return of / (of + others) if of + others else None


def verdict_name(verdict: int) -> str:
    """Return a verdict's name."""
    return label_pb2.Verdict.Name(verdict).removeprefix("VERDICT_").lower()


def source_name(source: int) -> str:
    """Return a source's name."""
    return label_pb2.LabelSource.Name(source).removeprefix("LABEL_SOURCE_").lower()
