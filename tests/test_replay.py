"""Replay makes every decision of a run again, to the byte, and names what is not as it was."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fraud.v1 import decision_pb2

from featurizer.eventlog_file import FileEventLog
from featurizer.features import INDEX, SCHEMA_VERSION
from featurizer.hashing import SECRET_BYTES
from fraudsvc.archive import Archive
from fraudsvc.look_back_command import ReplayOptions, replay_many, replay_one, span_of, steps_of
from fraudsvc.policy import DEFAULT_POLICY, Policy, load_policy
from fraudsvc.replay import states as replay_states
from fraudsvc.replay.again import Kind, Replayer, Verdict
from fraudsvc.replay.cases import Case
from fraudsvc.replay.judges import Places
from fraudsvc.replay.kernel import walk
from fraudsvc.replay.log import Span
from fraudsvc.replay.range import Summary
from tests.conftest import SEED, Host, Payments, Trained, call_now, decisions, overtake
from trainer.bundle import Bundle, load_bundle, load_content, write_bundle

LISTS = b"""
[[lists]]
code = "WATCHED"
action = "review"
field = "customer_id"
values = ["customer-1"]
"""


@pytest.fixture(scope="module")
def other(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return another bundle, on which the thresholds are lower."""
    path = tmp_path_factory.mktemp("other") / "bundle"
    content = load_content(
        trained.bundle_path, schema_version=SCHEMA_VERSION, public_key=trained.public_key
    )
    lower = replace(content.thresholds, review=content.thresholds.review / 2)
    write_bundle(path, replace(content, thresholds=lower), trained.key_path)
    return path


def loaded(path: Path, trained: Trained) -> Bundle:
    return load_bundle(path, schema_version=SCHEMA_VERSION, public_key=trained.public_key)


def options_of(host: Host, trained: Trained) -> ReplayOptions:
    places = Places(
        host.folder / "archive", host.folder / "models", trained.bundle_path, DEFAULT_POLICY,
        trained.public_key,
    )  # fmt: skip
    return ReplayOptions(f"file://{host.folder}/log", places, bytes(SECRET_BYTES), processes=1)


def replayed(host: Host, trained: Trained) -> Summary:
    return replay_many(Span(), options_of(host, trained), lambda _position, _done: None)


def lived(host: Host, bundles: list[Bundle], policies: list[Policy], steps: int) -> None:
    """Decide, with folds, labels, other rungs, swaps, policy changes and restarts in between."""
    payments, scorer = Payments(), host.scorer()
    late, blind = host.scorer(full_ms=1e9), host.scorer()
    for i in range(steps):
        host.bundle = bundles[i // 97 % len(bundles)]
        host.policy = policies[i // 61 % len(policies)]
        if i % 200 == 199:
            scorer = host.scorer(pending_max=60)  # so that a lazy featurizer leaves it stale
        chosen = scorer if i % 50 != 49 else (late if i % 100 == 49 else blind)
        chosen.score(payments.one(), call_now())
        if payments.rng.random() < 0.03:
            some = int(payments.rng.integers(1, 80))
            scorer.score_batch([payments.one() for _ in range(some)], call_now())
            chosen.score_several([payments.one() for _ in range(9)], [call_now()] * 9)
        if payments.rng.random() < 0.1 and i % 400 < 200:
            host.fold(int(payments.rng.integers(1, 40)))
        if payments.rng.random() < 0.1:
            known = payments.made[int(payments.rng.integers(len(payments.made)))]
            scorer.report_labels([payments.label(known.transaction_id)])


def test_a_run_with_swaps_policies_restarts_and_stale_states_is_the_same_to_the_byte(
    host: Host, trained: Trained, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Archive(host.folder / "archive")
    bundles = [trained.bundle, loaded(other, trained)]
    archive.keep_bundle(bundles[1].model_version, other)
    texts = [DEFAULT_POLICY.read_bytes(), DEFAULT_POLICY.read_bytes() + LISTS]
    policies = [load_policy(text, INDEX) for text in texts]
    archive.keep_policy(policies[1].version, texts[1])
    lived(host, bundles, policies, 2_400)
    summary = replayed(host, trained)
    assert summary.decisions == len(decisions(host.log)) >= 5_000
    assert summary.is_same, summary
    assert summary.rungs["RULES_ONLY"] == 24
    assert summary.rungs["PARTIAL"] > 200
    assert summary.rebuilt > 100
    assert min(summary.policies.values()) > 1_000
    assert len(summary.bundles) == 2
    # So that states of busy entities are kept from one lot of cases to the next.
    for module in ("range", "rebuilt"):
        monkeypatch.setattr(f"fraudsvc.replay.{module}.AT_ONCE", 16)
    monkeypatch.setattr("fraudsvc.replay.rebuilt.BUSY_RECORDS", 3)
    # So that cases wait in several blocks; and are made again of records that are kept, or read.
    monkeypatch.setattr("fraudsvc.replay.log.READ_BYTES", 1 << 18)
    for kept in (1_000_000, 0):
        monkeypatch.setattr("fraudsvc.replay.log.KEPT_RECORDS_MAX", kept)
        in_lots = replayed(host, trained)
        assert in_lots.is_same
        assert in_lots.rebuilt == summary.rebuilt


def few(host: Host, count: int = 60) -> None:
    payments, scorer = Payments(), host.scorer()
    for _ in range(count):
        scorer.score(payments.one(), call_now())


def an_id(host: Host, number: int = -1) -> str:
    return list(decisions(host.log).values())[number].assessment.decision_id


def test_an_unknown_decision_is_told(host: Host, trained: Trained) -> None:
    few(host, 3)
    options = options_of(host, trained)
    unknown = an_id(host)[:-1] + ("0" if an_id(host)[-1] != "0" else "1")
    with pytest.raises(ValueError, match="the log has no decision"):
        replay_one(unknown, options)
    with pytest.raises(ValueError, match="not a decision id"):
        replay_one("nonsense", options)


def test_another_kernel_is_found_and_named(
    host: Host, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A feature made of another slot, as a changed constant would: the schema says the same."""
    few(host)

    def changed(*arguments: Any) -> Any:
        done = walk(*arguments)
        arguments[-1][1][:, INDEX["card_count_1h"]] += np.float32(1)
        return done

    monkeypatch.setattr(replay_states, "walk", changed)
    summary = replayed(host, trained)
    assert summary.kinds[Kind.DIFFERENT.value] > 30
    assert summary.fields["features.card_count_1h"] == summary.kinds[Kind.DIFFERENT.value]
    assert all("another kernel" in cause for cause in summary.causes)
    found = summary.examples[0]["differences"][0]
    assert float(found["made"]) == float(found["logged"]) + 1
    assert found["bits"] > 0


def test_a_bundle_or_policy_that_is_gone_or_changed_is_named(
    host: Host, trained: Trained, other: Path
) -> None:
    archive = Archive(host.folder / "archive")
    host.bundle = loaded(other, trained)
    text = DEFAULT_POLICY.read_bytes() + LISTS
    few(host, 20)
    version = host.bundle.model_version
    gone = replayed(host, trained)
    assert gone.kinds == {Kind.GONE.value: 20}
    assert next(iter(gone.causes)).startswith(f"bundle {version} is gone")
    archive.keep_bundle(version, other)
    assert replayed(host, trained).is_same
    leaves = archive.bundle_path(version) / "leaf_values.npy"
    leaves.write_bytes(leaves.read_bytes()[:-1] + b"?")
    [cause] = replayed(host, trained).causes
    assert f"bundle {version} is not as it was" in cause
    assert "leaf_values.npy is not the file that was signed" in cause
    host.bundle, host.policy = trained.bundle, load_policy(text, INDEX)
    few_more = host.scorer()
    few_more.score(Payments(SEED + 1).one(), call_now())
    verdict, _ = replay_one(an_id(host), options_of(host, trained))
    assert (verdict.kind, f"policy {host.policy.version} is gone" in verdict.cause) == (
        Kind.GONE,
        True,
    )
    archive.keep_policy(host.policy.version, text)
    assert replay_one(an_id(host), options_of(host, trained))[0].is_same
    archive.policy_path(host.policy.version).write_bytes(text + b"# a word\n")
    verdict, _ = replay_one(an_id(host), options_of(host, trained))
    assert f"policy {host.policy.version} is not as it was" in verdict.cause


def test_what_is_the_same_is_found_so_without_parsing(
    host: Host, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    few(host)
    payments = Payments(SEED + 1)
    host.scorer().score_batch([payments.one() for _ in range(3)], call_now())
    compared: list[bytes] = []
    whole = Replayer._compared

    def noted(self: Replayer, case: Case, *more: Any) -> Verdict:
        compared.append(case.value)
        return whole(self, case, *more)

    monkeypatch.setattr(Replayer, "_compared", noted)
    summary = replayed(host, trained)
    assert (summary.decisions, summary.is_same) == (63, True)
    assert not compared


def test_another_id_secret_is_named(host: Host, trained: Trained) -> None:
    few(host, 5)
    options = replace(options_of(host, trained), secret=bytes(range(SECRET_BYTES)))
    verdict, _ = replay_one(an_id(host), options)
    assert (verdict.kind, verdict.cause) == (Kind.DIFFERENT, "another id secret")


def test_a_decision_on_no_states_and_a_range_are_replayed(host: Host, trained: Trained) -> None:
    few(host, 10)
    host.store.close()
    blind = host.scorer()
    host.worker = None  # type: ignore[assignment]
    blind.score(Payments(SEED + 2).one(), call_now())
    logged = list(decisions(host.log).values())[-1]
    assert logged.assessment.rung_cause == decision_pb2.RUNG_CAUSE_STATE_UNAVAILABLE
    summary = replayed(host, trained)
    assert (summary.decisions, summary.is_same) == (11, True)
    places = [*decisions(host.log)]
    span = span_of(str(places[3]), str(places[7]))
    some = replay_many(span, options_of(host, trained), lambda _p, _d: None)
    assert (some.decisions, some.is_same) == (4, True)


@pytest.mark.parametrize("repeats_one", [False, True])
def test_a_batch_that_others_overtook_is_replayed(
    host: Host, trained: Trained, repeats_one: bool
) -> None:
    payments = Payments()
    overtaken = overtake(host, payments, repeats_one=repeats_one)
    overtaken.slow.score(payments.one(customer_id="one"), call_now())
    summary = replayed(host, trained)
    assert (summary.decisions, summary.repeats) == ((23, 1) if repeats_one else (24, 0))
    assert summary.is_same, summary


def test_the_steps_of_a_decision_add_up(host: Host, trained: Trained) -> None:
    few(host)
    options = options_of(host, trained)
    verdict, rebuilt = replay_one(an_id(host), options)
    found = steps_of(verdict, rebuilt, options)
    features = {each["feature"]: each for each in found["features"]}
    for entity in found["entities"]:
        name = entity["entity"]
        if f"{name}_count_1d" in features:
            assert features[f"{name}_count_1d"]["value"] == entity["windows"]["1d"]
            assert features[f"{name}_count_1d"]["made_of"] == {
                f"{name}.count_1d": entity["windows"]["1d"]
            }
    largest = [abs(each["contribution"]) for each in found["model"]["largest"]]
    assert largest == sorted(largest, reverse=True)
    assert found["rules"]
    assert json.loads(json.dumps(found)) == found


def test_a_log_that_was_cut_short_is_told(tmp_path: Path, trained: Trained) -> None:
    keeper = FileEventLog(tmp_path / "log", segment_bytes=1 << 16, retain_bytes=1 << 17)
    host = Host(tmp_path, trained.bundle)
    try:
        few(host, 100)
        assert keeper.drop_oldest() > 0
        summary = replayed(host, trained)
    finally:
        host.close()
        keeper.close()
    assert summary.log_begins > 0
    assert summary.kinds[Kind.DIFFERENT.value] == 0
    assert summary.kinds[Kind.GONE.value] > 10
    assert {cause.partition(":")[0] for cause in summary.causes} == {
        f"the log begins at {summary.log_begins}"
    }
