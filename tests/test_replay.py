"""Replay makes every decision of a run again, to the byte, and names what is not as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from featurizer.features import INDEX, SCHEMA_VERSION
from featurizer.hashing import SECRET_BYTES
from fraudsvc.archive import Archive
from fraudsvc.policy import DEFAULT_POLICY, Policy, load_policy
from fraudsvc.replay_command import ReplayOptions, replay_many
from fraudsvc.replay_judges import Places
from fraudsvc.replay_log import Span
from fraudsvc.replay_range import Summary
from tests.conftest import Host, Payments, Trained, call_now, decisions
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
        if payments.rng.random() < 0.1 and i % 400 < 200:
            host.fold(int(payments.rng.integers(1, 40)))
        if payments.rng.random() < 0.1:
            known = payments.made[int(payments.rng.integers(len(payments.made)))]
            scorer.report_labels([payments.label(known.transaction_id)])


def test_a_run_with_swaps_policies_restarts_and_stale_states_is_the_same_to_the_byte(
    host: Host, trained: Trained, other: Path
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
