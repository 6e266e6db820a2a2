"""Hot swap: bundles are replaced under load, and no call fails or mixes two of them."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fraud.v1 import fraud_service_pb2 as pb

from featurizer.features import FEATURES, SCHEMA_VERSION
from fraudsvc.models import KEPT, BundleFile
from tests.conftest import SEED, Host, Payments, Trained, connected, decisions, serving
from tests.layers import random_expert, random_trees
from trainer.bundle import Bundle, BundleError, load_bundle, load_content, write_bundle

VERSIONS = 8
SWAPS = 40
CALLERS = 2
TIMEOUT_S = 30.0


class Shelf:
    """Written bundles, a link to the one in use, and the file that follows the link."""

    def __init__(self, folder: Path, trained: Trained) -> None:
        content = load_content(
            trained.bundle_path, schema_version=SCHEMA_VERSION, public_key=trained.public_key
        )
        random, width = np.random.default_rng(SEED), len(FEATURES)
        self.paths = []
        for number in range(VERSIONS):
            layers = replace(
                content,
                residual=random_trees(random, width, 10, scale=0.2) if number % 2 else None,
                expert=random_expert(random, width, 12) if number % 4 else None,
                facts={"number": number},
            )
            self.paths.append(folder / f"bundle-{number}")
            write_bundle(self.paths[-1], layers, trained.key_path)
        self.folder, self.trained = folder, trained
        self.errors: list[BundleError] = []
        self.link = folder / "bundle"
        self.point(0)
        self.file = BundleFile(self.link, trained.public_key, self.errors.append)

    def point(self, number: int) -> None:
        draft = self.folder / "next"
        draft.symlink_to(self.paths[number])
        draft.replace(self.link)

    def load(self, number: int) -> Bundle:
        return load_bundle(
            self.paths[number], schema_version=SCHEMA_VERSION, public_key=self.trained.public_key
        )


@pytest.fixture
def shelf(tmp_path: Path, trained: Trained) -> Shelf:
    folder = tmp_path / "shelf"
    folder.mkdir()
    return Shelf(folder, trained)


def call_until(done: threading.Event, port: int, seed: int, faults: list[str]) -> None:
    payments = Payments(seed)
    with connected(port) as client:
        while not done.is_set():
            request = pb.ScoreRequest(transaction=payments.one(customer_id=f"customer-{seed}"))
            try:
                answer = client.stub.Score(request, timeout=TIMEOUT_S).assessment
                if not answer.model_version:
                    faults.append("answered without a model")
            except Exception as error:  # noqa: BLE001 - whatever it is, it is a failed call
                faults.append(repr(error))


def test_no_call_fails_or_mixes_bundles_over_many_swaps(host: Host, shelf: Shelf) -> None:
    host.bundle = shelf.file.current
    done, faults = threading.Event(), list[str]()
    with serving(host.scorer()) as (server, _):
        callers = [
            threading.Thread(target=call_until, args=(done, server.port, SEED + i, faults))
            for i in range(CALLERS)
        ]
        for caller in callers:
            caller.start()
        for number in itertools.islice(itertools.cycle(range(VERSIONS)), SWAPS):
            shelf.point(number)
            host.bundle = shelf.file.poll()
            done.wait(0.02)  # let some calls meet it
        done.set()
        for caller in callers:
            caller.join()
    assert faults == []
    assert shelf.errors == []
    bundles = {bundle.model_version: bundle for bundle in map(shelf.load, range(VERSIONS))}
    used: Counter[str] = Counter()
    for decision in decisions(host.log).values():
        bundle = bundles[decision.assessment.model_version]
        vector = np.frombuffer(decision.features, np.float32).copy()
        assert bundle.model.logit(vector) == decision.logit
        assert bundle.calibrate(decision.logit) == decision.assessment.score
        used[bundle.model_version] += 1
    assert len(used) >= VERSIONS // 2


def test_the_last_few_stay_in_memory(shelf: Shelf) -> None:
    loaded = []
    for number in range(VERSIONS):
        shelf.point(number)
        bundle = shelf.file.poll()
        assert bundle is not None
        loaded.append(bundle)
    for number, bundle in enumerate(loaded):
        kept = number >= VERSIONS - KEPT
        assert (shelf.file.find(bundle.model_version) is bundle) == kept
    shelf.point(VERSIONS - 2)  # back to the one before: the same object, nothing is loaded
    assert shelf.file.poll() is loaded[-2]
    shelf.point(0)
    assert shelf.file.poll() is not loaded[0]
    # The one used longest ago went, not the one gone back to.
    assert shelf.file.find(loaded[-2].model_version) is loaded[-2]
    assert shelf.file.find(loaded[-KEPT].model_version) is None
    assert shelf.errors == []


def test_a_base_that_is_known_is_taken_and_checked_all_the_same(shelf: Shelf) -> None:
    first, second = shelf.load(1), shelf.load(3)
    again = load_bundle(
        shelf.paths[3], schema_version=SCHEMA_VERSION, public_key=shelf.trained.public_key,
        like=first,
    )  # fmt: skip
    assert again.model.base is first.model.base
    assert again.model.array.tobytes() == second.model.array.tobytes()
    other = replace(first, manifest={**first.manifest, "feature_names_digest": ""})
    fresh = load_bundle(
        shelf.paths[3], schema_version=SCHEMA_VERSION, public_key=shelf.trained.public_key,
        like=other,
    )  # fmt: skip
    assert fresh.model.base is not first.model.base
