"""A backtest: decisions of the log decided again with a change, on all cores.

Vectors are on the log, so nothing is folded: a change of bundle or policy cannot change them. Owns
what is changed and how the log is read. Nothing is ever written.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fraud.v1 import label_pb2
from numpy.typing import NDArray

from featurizer.adapters import open_log
from featurizer.eventlog import Batch, Topic
from featurizer.features import INDEX, SCHEMA_VERSION
from featurizer.records import Entity
from fraudsvc.assess import Sheet
from fraudsvc.backtest.figures import ROW, SAID
from fraudsvc.decide import Workspace, decide, decide_all
from fraudsvc.payment import Payment
from fraudsvc.policy import Policy, load_policy
from fraudsvc.replay.again import GoneError, payment_of
from fraudsvc.replay.cases import Case, Cases, Transactions
from fraudsvc.replay.judges import Finder, Places
from fraudsvc.replay.log import Pieces, Span
from fraudsvc.replay.told import Told
from fraudsvc.rungs import RULES_ONLY
from fraudsvc.shares import Share, Tell, share_out
from trainer.bundle import Bundle

RULE_CODE = "WHAT_IF"


class Change(NamedTuple):
    """What is decided with instead: a policy file, a bundle's id, a rule (CEL) and its action.

    Empty texts leave what decided.
    """

    policy: str = ""
    bundle: str = ""
    rule: str = ""
    action: str = "review"


class Job(NamedTuple):
    """What is to be decided again, and with what."""

    log: str
    places: Places
    span: Span
    end: int  # of the log
    change: Change


@dataclass(slots=True)
class Decided:
    """What a share came to: rows ROW[n], labels SAID[m], and why some were not decided again."""

    rows: NDArray[Any]
    labels: NDArray[Any]
    gone: Counter[str] = field(default_factory=Counter)


class Changed:
    """Finds what decides instead. Raises GoneError where what decided is not to be had."""

    def __init__(self, change: Change, finder: Finder) -> None:
        self._change = change
        self._finder = finder
        self._policies: dict[str, Policy] = {}

    def bundle(self, model_version: str) -> Bundle:
        """Return the bundle that decides where one of ``model_version`` did."""
        return self._finder.bundle(self._change.bundle or model_version)

    def policy(self, version: str) -> Policy:
        """Return the policy that decides where one of ``version`` did. Raises PolicyError."""
        change = self._change
        version = "" if change.policy else version
        if version not in self._policies:
            if not change.policy:
                self._finder.policy(version)  # that it is as it was
            path = Path(change.policy) if change.policy else self._finder.policy_path(version)
            text = _changed_text(path.read_bytes(), change)
            self._policies[version] = load_policy(text, INDEX, path.name)
        return self._policies[version]


def _changed_text(text: bytes, change: Change) -> bytes:
    """Return a policy file with the added rule; JSON's texts are TOML's."""
    if not change.rule:
        return text
    fields = {"code": RULE_CODE, "when": change.rule, "action": change.action, "text": "what if"}
    lines = (f"{name} = {json.dumps(value)}" for name, value in fields.items())
    return text + ("\n\n[[rules]]\n" + "\n".join(lines) + "\n").encode()


def check(change: Change, places: Places) -> None:
    """Refuse a change that cannot be: GoneError, PolicyError, OSError say why."""
    if change.bundle:
        Finder(places).bundle(change.bundle)
    if change.policy or change.rule:
        text = Path(change.policy or places.policy).read_bytes()
        load_policy(_changed_text(text, change), INDEX)


def run(job: Job, processes: int, tell: Tell) -> Decided:
    """Decide a range again; rows and labels in the order of the log."""
    found = share_out(decide_share, job, processes, tell)
    rows = np.concatenate([each.rows for each in found])
    labels = np.concatenate([each.labels for each in found])
    gone: Counter[str] = Counter()
    for each in found:
        gone.update(each.gone)
    return Decided(rows[np.argsort(rows["position"])], labels[np.argsort(labels["position"])], gone)


def decide_share(job: Job, share: Share, tell: Tell) -> Decided:
    """Decide the decisions of a share again. Raises LogError."""
    log = open_log(job.log, read_only=True)
    finder = Finder(job.places)
    again = _Again(Changed(job.change, finder))
    rows: list[NDArray[Any]] = []
    labels: list[tuple[int, ...]] = []
    done = 0
    try:
        pieces = Pieces(log)
        for piece in pieces.read(job.end):
            labels += _labels(piece.batch, share)
            cases, _ = piece.cases_of(job.span, share)
            rows.append(again.rows(cases))
            done += len(rows[-1])
            tell(piece.end, done)
    finally:
        log.close()
    every = np.concatenate([np.zeros(0, ROW), *rows])
    return Decided(every, np.array(labels, SAID), again.gone)


def _labels(batch: Batch, share: Share) -> Iterator[tuple[int, ...]]:
    for i in np.flatnonzero(batch.topics == Topic.LABELS).tolist():
        if share.has(int(batch.frames[i])):
            label = label_pb2.Label.FromString(batch.value(i))
            known_ms = label.label_time.ToMilliseconds()
            position = int(batch.positions[i])
            yield int(batch.keys[i]), position, known_ms, label.verdict, label.source


class _Again:
    """Decides cases of the log again, those of one bundle and policy together."""

    def __init__(self, changed: Changed) -> None:
        self._changed = changed
        self._sheet = Sheet(0)
        self._space = Workspace()
        self.gone: Counter[str] = Counter()

    def rows(self, cases: Cases) -> NDArray[Any]:
        """Return ROW[n], one for each case."""
        rows = np.zeros(len(cases), ROW)
        records, told = cases.records, cases.told
        rows["transaction"], rows["amount_ref"] = records["transaction"], records["amount_ref"]
        rows["mcc"], rows["region"] = records["mcc"], records["merchant_region"]
        rows["channel"] = records["channel"]
        rows["position"] = cases.positions
        rows["received_ms"] = told[:, Told.RECEIVED_MS]
        rows["rung"], rows["before"] = told[:, Told.RUNG], told[:, Told.OUTCOME]
        for places, versions in cases.groups():
            some = cases.rows(places)
            try:
                rows["after"][places] = self._outcomes(*versions, some)
            except GoneError as error:
                self.gone[str(error)] += len(some)
        return rows

    def _outcomes(
        self, schema: str, model_version: str, policy_version: str, cases: Cases
    ) -> Sequence[int] | NDArray[np.int64]:
        policy = self._changed.policy(policy_version)
        records = cases.records.copy()
        if not model_version:  # no vector was made, so no bundle could have said anything
            return [
                self._by_rules(case, records[i : i + 1], policy) for i, case in enumerate(cases)
            ]
        if schema != SCHEMA_VERSION:
            raise GoneError(f"vectors of schema {schema}, this process has {SCHEMA_VERSION}")
        bundle = self._changed.bundle(model_version)
        versions = np.zeros((len(cases), len(Entity)), np.int64)
        sheet = self._sheet = self._sheet.with_room(len(cases))
        sheet.appraise(cases.vectors(), records, versions, bundle, policy.table)

        def payment(row: int) -> Payment:
            return payment_of(cases[row], records[row : row + 1])

        return decide_all(payment, Transactions(cases), sheet, bundle, policy).outcomes

    def _by_rules(self, case: Case, record: NDArray[np.void], policy: Policy) -> int:
        payment, space = payment_of(case, record), self._space
        return decide(payment, record, space, None, policy, RULES_ONLY, case.cause).outcome
