"""Scorer and trainer as processes: swaps under load fail no call, and serving outlives the trainer.

FRAUD_SWAPS says how many swaps; 200 is what the issue asks for.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from fraud.v1 import decision_pb2
from fraud.v1 import fraud_service_pb2 as pb

from featurizer.features import SCHEMA_VERSION
from tests.conftest import START_S, Connected, Payments, Process, Trained, connected, process, until
from trainer.bundle import load_content, write_bundle
from trainer.shelf import Shelf
from trainer.thresholds import Thresholds

SWAPS = int(os.environ.get("FRAUD_SWAPS", "30"))
TIMEOUT_S = 30.0
LATE_S = 0.05


class Roles(NamedTuple):
    """The data of a host and a client of its scorer."""

    data: Path
    shelf: Shelf
    client: Connected
    trainer: Process


@pytest.fixture
def roles(tmp_path: Path, trained: Trained) -> Iterator[Roles]:
    shutil.copytree(trained.bundle_path, tmp_path / "bundle")
    (tmp_path / "key.pub").write_bytes(trained.public_key)
    log, store = f"file://{tmp_path}/log", f"lmdb://{tmp_path}/store"
    model = ["--bundle", str(tmp_path / "bundle"), "--public-key", str(tmp_path / "key.pub")]
    ready = {name: tmp_path / f"{name}.ready" for name in ("featurizer", "serve", "trainer")}
    with (
        process(tmp_path / "f.out", "featurizer", "run", "--log", log, "--store", store,
                "--ready-file", str(ready["featurizer"])),
        process(tmp_path / "t.out", "trainer", "run", "--log", log, *model,
                "--key", str(trained.key_path), "--ready-file", str(ready["trainer"])) as trainer,
        process(tmp_path / "s.out", "fraudsvc", "serve", "--log", log, "--store", store, *model,
                "--address", "127.0.0.1:0", "--poll-s", "0.1", "--max-age-days", "0",
                "--budget-ms", "60000", "--ready-file", str(ready["serve"])) as serve,
    ):  # fmt: skip
        serve.wait_for(ready["serve"])
        until(ready["trainer"].exists, "the trainer", START_S)
        with connected(int(ready["serve"].read_text())) as client:
            shelf = Shelf(tmp_path / "models", tmp_path / "bundle")
            yield Roles(tmp_path, shelf, client, trainer)


def answer(roles: Roles, payments: Payments) -> tuple[decision_pb2.Assessment, float]:
    request = pb.ScoreRequest(transaction=payments.one())
    begin = time.perf_counter()
    told = roles.client.stub.Score(request, timeout=TIMEOUT_S).assessment
    return told, time.perf_counter() - begin


def test_swaps_under_load_fail_no_call_and_serving_outlives_the_trainer(
    roles: Roles, trained: Trained
) -> None:
    payments = Payments()
    first = str(roles.shelf.served())
    roles.trainer.stop(signal.SIGKILL)
    content = load_content(
        trained.bundle_path, schema_version=SCHEMA_VERSION, public_key=trained.public_key
    )
    other = replace(content, thresholds=Thresholds(0.5, 0.9))
    second = write_bundle(roles.data / "draft", other, trained.key_path)
    roles.shelf.place(roles.data / "draft", second)
    calls = late = 0
    for number in range(SWAPS):
        wanted = (second, first)[number % 2]
        roles.shelf.serve(wanted)
        end = time.monotonic() + TIMEOUT_S
        while True:
            told, used_s = answer(roles, payments)
            calls, late = calls + 1, late + (used_s > LATE_S)
            assert told.model_version in (first, second)
            assert told.rung == decision_pb2.RUNG_FULL
            if told.model_version == wanted:
                break
            assert time.monotonic() < end, "a swap that never comes"
    print(f"{SWAPS} swaps, {calls} calls, 0 failed, {late} later than {LATE_S * 1e3:.0f} ms")
