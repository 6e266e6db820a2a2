"""The policy file: what it refuses, who wins, and how it is watched."""

from __future__ import annotations

import hashlib
import itertools
import math
import threading
from pathlib import Path

import numpy as np
import pytest
from fraud.v1 import decision_pb2
from fraud.v1 import transaction_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from fraudsvc.policy import (
    APPROVE,
    DECLINE,
    DEFAULT_POLICY,
    FALLBACK_CODE,
    LISTABLE,
    POLL_INTERVAL_MS,
    REVIEW,
    Policy,
    PolicyError,
    PolicyFile,
    Ruling,
    load_policy,
)
from fraudsvc.policy.cel_rules import VARIABLES
from fraudsvc.policy.ruling import LOOKED_FOR_MAX
from tests.conftest import accepted
from tests.test_contract import full

NOW_MS = 1_767_225_600_000
FEATURES = {"amount_z": 0, "count_1h": 1}
HEAD = """
version = "t"
[thresholds]
review = "from_model"
decline = "from_model"
[fallback]
bands = [{ up_to = 1000, outcome = "approve" }, { up_to = 50_000, outcome = "review" }]
beyond = "decline"
"""


def rule(code: str, when: str, action: str) -> str:
    return f"[[rules]]\ncode = '{code}'\nwhen = '''{when}'''\naction = '{action}'\ntext = 'why'\n"


def listing(code: str, action: str, values: str = '["customer-1"]', more: str = "") -> str:
    return (
        f"[[lists]]\ncode = '{code}'\naction = '{action}'\nfield = 'customer_id'\n"
        f"values = {values}\n{more}\n"
    )


def override(code: str, more: str, until: str = "2027-01-01T00:00:00Z") -> str:
    return (
        f"[[overrides]]\ncode = '{code}'\nfield = 'customer_id'\nvalue = 'customer-1'\n"
        f"until = {until}\n{more}\n"
    )


def load(body: str = "", head: str = HEAD) -> Policy:
    return load_policy((head + body).encode(), FEATURES)


def ask(
    policy: Policy,
    score: float | None = 0.1,
    features: tuple[float, float] | None = (0.0, 0.0),
    now_ms: int = NOW_MS,
    transaction: pb.Transaction | None = None,
) -> Ruling:
    vector = None if features is None else np.array(features, np.float32)
    return policy.rule(accepted(transaction or full(), now_ms), vector, score, (0.3, 0.7))


def codes(ruling: Ruling) -> list[str]:
    return [reason.code for reason in ruling.reasons]


# One way to say each step of the order, first to last, and what it decides.
STEPS = (
    (listing("DENY", "deny"), "DENY", DECLINE),
    (override("OVERRIDE", "action = 'approve'"), "OVERRIDE", APPROVE),
    (rule("RULE_DECLINE", "true", "decline"), "RULE_DECLINE", DECLINE),
    (listing("ALLOW", "allow"), "ALLOW", APPROVE),
    (listing("LIST_REVIEW", "review"), "LIST_REVIEW", REVIEW),
    (rule("RULE_APPROVE", "true", "approve"), "RULE_APPROVE", APPROVE),
)


@given(st.sets(st.integers(0, len(STEPS) - 1), min_size=1))
def test_the_first_step_of_the_order_decides_and_all_are_reasons(chosen: set[int]) -> None:
    steps = [STEPS[place] for place in sorted(chosen)]
    ruling = ask(load("".join(text for text, _, _ in steps)))
    assert ruling.outcome == steps[0][2]
    assert codes(ruling) == [code for _, code, _ in steps]


@pytest.mark.parametrize(
    ("score", "outcome"),
    [
        (0.0, APPROVE),
        (0.299, APPROVE),
        (0.3, REVIEW),
        (0.699, REVIEW),
        (0.7, DECLINE),
        (1, DECLINE),
    ],
)
def test_thresholds_of_the_model(score: float, outcome: int) -> None:
    assert ask(load(), score)[:2] == (outcome, ())


def test_thresholds_of_the_file_and_of_an_override() -> None:
    head = HEAD.replace('review = "from_model"', "review = 0.05")
    assert ask(load(head=head), 0.1).outcome == REVIEW
    assert ask(load(head=head), 0.8).outcome == DECLINE
    own = override("OWN", "review = 0.9\ndecline = 0.95")
    assert ask(load(own, head), 0.8).outcome == APPROVE
    assert ask(load(own, head), 0.92).outcome == REVIEW
    half = override("OWN", "decline = 0.95")
    assert [ask(load(half, head), score).outcome for score in (0.1, 0.8)] == [REVIEW, REVIEW]
    ended = override("OWN", "review = 0.9\ndecline = 0.95", "2025-12-31T00:00:00Z")
    assert ask(load(ended, head), 0.8).outcome == DECLINE


@pytest.mark.parametrize("body", [listing("L", "review"), rule("R", "true", "review")])
def test_a_review_never_softens_a_decline_of_the_model(body: str) -> None:
    assert ask(load(body), 0.1).outcome == REVIEW
    assert ask(load(body), 0.9).outcome == DECLINE


def test_a_flag_is_a_reason_and_decides_nothing() -> None:
    ruling = ask(load(rule("F", "true", "flag")))
    assert (ruling.outcome, codes(ruling)) == (APPROVE, ["F"])
    assert ruling.reasons[0].source == decision_pb2.REASON_SOURCE_RULE
    assert ruling.reasons[0].text == "why"


@pytest.mark.parametrize(
    ("cents", "outcome"), [(1000, APPROVE), (1001, REVIEW), (50_000, REVIEW), (50_001, DECLINE)]
)
def test_without_a_score_the_amount_decides(cents: int, outcome: int) -> None:
    t = full()
    t.currency_code, t.amount_minor = "USD", cents
    ruling = ask(load(), None, None, transaction=t)
    assert (ruling.outcome, codes(ruling)) == (outcome, [FALLBACK_CODE])
    assert ruling.reasons[0].source == decision_pb2.REASON_SOURCE_FALLBACK


def test_lists_end_at_their_time_or_a_values_own() -> None:
    end = "2026-01-01T00:00:00Z"  # NOW_MS
    for body in (
        listing("L", "deny", more=f"expires = {end}"),
        listing("L", "deny", f"[{{ value = 'customer-1', expires = {end} }}]"),
    ):
        policy = load(body)
        assert ask(policy, now_ms=NOW_MS - 1).outcome == DECLINE
        assert ask(policy, now_ms=NOW_MS)[:2] == (APPROVE, ())


@pytest.mark.parametrize("field", sorted(LISTABLE))
def test_every_field_can_be_listed(field: str) -> None:
    value = LISTABLE[field](full())
    assert value
    body = listing("L", "deny", f"['{value}']").replace("'customer_id'", f"'{field}'")
    assert ask(load(body)).outcome == DECLINE
    assert ask(load(body), transaction=bare()).outcome == APPROVE


@pytest.mark.parametrize("others", [0, LOOKED_FOR_MAX])
def test_a_listed_value_in_another_field_is_not_listed(others: int) -> None:
    values = str(["merchant-9", *(f"nobody-{i}" for i in range(others))])
    policy = load(listing("L", "deny", values))  # of customers
    assert ask(policy, transaction=full()).outcome == APPROVE
    payment = full()
    payment.merchant.merchant_id = "merchant-9"
    scores, looked_up = np.array([0.1]), np.zeros(1, np.int64)
    outcomes = policy.rule_by_score(scores, looked_up, (0.3, 0.7), [payment.SerializeToString()])
    assert outcomes.tolist() == [0]  # whoever asks has to look
    assert ask(policy, transaction=payment).outcome == APPROVE
    payment.customer_id = "merchant-9"
    assert ask(policy, transaction=payment).outcome == DECLINE


def bare() -> pb.Transaction:
    """A payment of nothing but what is required."""
    whole = full()
    return pb.Transaction(
        request_id=whole.request_id, transaction_id=whole.transaction_id, customer_id="another",
        event_time=whole.event_time, amount_minor=1, currency_code="USD",
    )  # fmt: skip


EXPRESSIONS = {
    "amount_minor": "amount_minor == 12345", "amount_reference": "amount_reference == 12672",
    "currency_code": 'currency_code == "EUR"', "channel": 'channel == "ECOMMERCE"',
    "pos_entry_mode": 'pos_entry_mode == "ECOMMERCE"', "card_present": "!card_present",
    "recurring": "recurring", "three_ds_result": 'three_ds_result == "AUTHENTICATED"',
    "avs_result": 'avs_result == "PARTIAL"', "cvv_result": 'cvv_result == "MATCH"',
    "authorization_result": 'authorization_result == "APPROVED"', "brand": 'brand == "VISA"',
    "funding": 'funding == "DEBIT"', "merchant_category_code": 'merchant_category_code == "0742"',
    "merchant_region_code": 'merchant_region_code in ["FR", "IT"]',
    "issuer_region_code": 'issuer_region_code == "DE"',
    "billing_region_code": "billing_region_code != shipping_region_code",
    "shipping_region_code": 'shipping_region_code == "AT"',
    "email_domain": 'email_domain.endsWith(".com")', "hour_utc": "hour_utc == 23",
    "account_age_days": "account_age_days > 399.9 && account_age_days < 400.0",
}  # fmt: skip


def test_every_variable_holds_what_it_says() -> None:
    assert EXPRESSIONS.keys() == VARIABLES.keys()
    body = "".join(rule(name.upper(), when, "flag") for name, when in EXPRESSIONS.items())
    assert codes(ask(load(body))) == [name.upper() for name in EXPRESSIONS]


def test_features_and_score_are_read_by_name() -> None:
    policy = load(rule("Z", "amount_z > 3.0 && score < 0.5", "decline"))
    assert ask(policy, features=(3.5, 0)).outcome == DECLINE
    assert ask(policy, features=(2.5, 0)).outcome == APPROVE
    assert ask(policy, 0.6, features=(3.5, 0)).outcome == REVIEW


@pytest.mark.parametrize("when", ["amount_z > 3.0", "!(amount_z > 3.0)", "amount_z != 1.0"])
def test_a_rule_that_reads_what_is_not_known_does_not_fire(when: str) -> None:
    policy = load(rule("UNKNOWN", when, "decline") + rule("PLAIN", "count_1h == 0.0", "flag"))
    assert codes(ask(policy, features=(math.nan, 0))) == ["PLAIN"]
    assert codes(ask(policy, features=None)) == []
    assert policy.rule_errors == {"UNKNOWN": 0, "PLAIN": 0}


def test_a_rule_on_the_score_does_not_fire_without_one() -> None:
    policy = load(rule("S", "score < 2.0", "decline"))
    assert codes(ask(policy, None)) == [FALLBACK_CODE]


def test_an_error_stays_with_its_rule_and_is_counted() -> None:
    policy = load(rule("BAD", "100 / amount_minor > 1", "decline") + rule("GOOD", "true", "flag"))
    t = full()
    t.amount_minor = 0
    for _ in range(3):
        assert codes(ask(policy, transaction=t)) == ["GOOD"]
    assert policy.rule_errors == {"BAD": 3, "GOOD": 0}
    t.amount_minor = 7
    assert codes(ask(policy, transaction=t)) == ["BAD", "GOOD"]


def test_values_of_one_call_do_not_stay_for_the_next() -> None:
    policy = load(rule("BIG", "amount_minor > 100 && amount_z > 1.0", "decline"))
    small = full()
    small.amount_minor = 1
    calls = itertools.product((full(), small), ((2.0, 0.0), (math.nan, 0.0), (0.5, 0.0)))
    found = [bool(codes(ask(policy, features=z, transaction=t))) for t, z in calls]
    assert found == [True, False, False, False, False, False]


def test_threads_do_not_see_each_others_values() -> None:
    policy = load(rule("BIG", "amount_minor > 100", "decline"))
    wrong: list[int] = []

    def work(amount: int) -> None:
        t = full()
        t.amount_minor = amount
        answers = {bool(codes(ask(policy, transaction=t))) for _ in range(1000)}
        if answers != {amount > 100}:
            wrong.append(amount)

    threads = [threading.Thread(target=work, args=(amount,)) for amount in (1, 1000, 2, 2000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


BROKEN = {
    "syntax": (rule("A", "amount_minor >", "decline"), "rule A: syntax error"),
    "variable": (rule("A", "amount_mino > 1", "decline"), "rule A: unknown name amount_mino"),
    "function": (rule("A", "false && foo(1)", "decline"), "rule A: unknown name foo"),
    "not bool": (rule("A", "amount_minor + 1", "decline"), "rule A: gives int"),
    "types": (rule("A", 'amount_minor > "1"', "decline"), "rule A: No such overload"),
    "regex": (rule("A", 'email_domain.matches("(")', "decline"), "rule A: Function 'matches'"),
    "out of the list": (rule("A", "true, false", "decline"), "rule A: syntax error"),
    "twice": (rule("A", "true", "flag") + listing("A", "deny"), "list A: the code is used twice"),
    "code": (rule("a-b", "true", "flag"), "rule a-b: the code"),
    "action": (rule("A", "true", "deny"), "rule 1: action must be one of decline"),
    "key": (rule("A", "true", "flag") + "x = 1\n", r"rule 1: .*unknown keys \['x'\]"),
    "no key": ("[[rules]]\ncode = 'A'\n", r"rule 1: missing keys \['action', 'text', 'when'\]"),
    "type": (rule("A", "true", "flag").replace("'why'", "7"), "rule 1: text must be of type text"),
    "section": ("[extra]\n", "unknown keys"),
    "field": (listing("A", "deny").replace("customer_id", "name"), "list 1: field must be one of"),
    "empty value": (listing("A", "deny", '[""]'), "empty value"),
    "value": (listing("A", "deny", "[7]"), "list A: value must be a table"),
    "local time": (listing("A", "deny", more="expires = 2026-01-01T00:00:00"), "needs its offset"),
    "nothing": (override("A", ""), "override A: needs either"),
    "both": (override("A", "action = 'approve'\nreview = 0.1"), "override A: needs either"),
    "order": (override("A", "review = 0.5\ndecline = 0.4"), "override A: review must not be above"),
    "toml": ("]", "Invalid"),
}


@pytest.mark.parametrize(("body", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_policy_is_refused_by_name(body: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        load(body)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('review = "from_model"', "review = 1.5", "thresholds: review must lie between"),
        ('review = "from_model"', "review = nan", "thresholds: review must lie between"),
        ('review = "from_model"', 'review = "model"', "thresholds: review must lie between"),
        ('review = "from_model"', "review = true", "thresholds: review must be"),
        ("up_to = 1000", "up_to = 90_000", "up_to must grow"),
        ('"decline"', '"deny"', "beyond must be one of"),
        ('version = "t"', "", r"missing keys \['version'\]"),
    ],
)
def test_a_broken_head_is_refused(old: str, new: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        load(head=HEAD.replace(old, new, 1))


def test_the_file_is_named_and_must_be_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"version = '\xff'")
    with pytest.raises(PolicyError, match=r"^mine\.toml: "):
        load_policy(path, {})
    with pytest.raises(PolicyError, match="nested too deeply"):
        load_policy(b"a = " + b"[" * 5_000, {})


def test_the_version_is_the_digest_of_the_bytes() -> None:
    assert load().version == "p-" + hashlib.sha256(HEAD.encode()).hexdigest()[:16]


def test_the_default_policy_loads_without_features() -> None:
    policy = load_policy(DEFAULT_POLICY, {})
    assert len(policy.rule_errors) >= 8
    assert policy.rule(accepted(full(), NOW_MS), None, 0.01, (0.3, 0.7))[:2] == (APPROVE, ())
    failed = full()
    failed.cvv_result, failed.avs_result = pb.CVV_RESULT_MISMATCH, pb.AVS_RESULT_MISMATCH
    ruling = policy.rule(accepted(failed, NOW_MS), None, 0.01, (0.3, 0.7))
    assert ruling.outcome == DECLINE
    assert codes(ruling) == ["SECURITY_CODE_AND_ADDRESS_MISMATCH"]


class Watched:
    """A policy file, its watcher, a clock, and the errors reported."""

    def __init__(self, path: Path) -> None:
        self.path, self.now_ms, self.errors = path, 0.0, list[PolicyError]()
        self.write(HEAD)
        self.file = PolicyFile(path, FEATURES, self.errors.append, lambda: self.now_ms)

    def write(self, text: str) -> None:
        fresh = self.path.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.path)

    def later(self) -> Policy:
        self.now_ms += POLL_INTERVAL_MS
        return self.file.poll()


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path / "policy.toml")


def test_a_changed_file_is_taken_up_after_the_interval(watched: Watched) -> None:
    first = watched.file.poll()
    watched.write(HEAD + rule("NEW", "true", "decline"))
    watched.now_ms = POLL_INTERVAL_MS - 1
    assert watched.file.poll() is first
    watched.now_ms = POLL_INTERVAL_MS
    assert codes(ask(watched.file.poll())) == ["NEW"]
    assert watched.later() is watched.file.current
    assert watched.errors == []


def test_a_broken_file_is_reported_once_and_the_old_one_stays(watched: Watched) -> None:
    first = watched.file.current
    watched.write("broken")
    assert [watched.later() for _ in range(3)] == [first] * 3
    assert [str(error).split(":")[0] for error in watched.errors] == ["policy.toml"]
    watched.path.unlink()
    assert watched.later() is first
    assert watched.later() is first
    assert len(watched.errors) == 2
    watched.write(HEAD + rule("NEW", "true", "decline"))
    assert codes(ask(watched.later())) == ["NEW"]
    assert len(watched.errors) == 2
