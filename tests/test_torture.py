"""Exactly once under fire: a short torture, by the command that a long one is run by."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.testing.kafka import kafka_missing
from deploy.testing.redis import redis_missing
from tests.conftest import SEED
from tests.servers import need

ROUNDS = {"lmdb": 8, "redis": 4}
FAULTS = {"lmdb": "", "redis": "redis-kill,redis-flush,redis-stop,kill"}
TIME_MAX_S = 600


@pytest.mark.timeout(TIME_MAX_S + 60)
@pytest.mark.parametrize("store", ROUNDS)
def test_nothing_is_lost_twice_or_different(tmp_path: Path, store: str) -> None:
    need(kafka_missing() or (redis_missing() if store == "redis" else ""))
    told = tmp_path / "report.json"
    command = [
        sys.executable, "-m", "tests.torture", "--store", store, "--faults", FAULTS[store],
        "--rounds", str(ROUNDS[store]), "--seed", str(SEED), "--folder", str(tmp_path / "torture"),
        "--json", str(told),
    ]  # fmt: skip
    print(f"SEED={SEED}")
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    try:
        status = process.wait(TIME_MAX_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert status == 0, (tmp_path / "out").read_text()
    rounds = json.loads(told.read_text())["rounds"]
    assert len(rounds) == ROUNDS[store]
    assert [(r["lost"], r["twice"], r["different"]) for r in rounds] == [(0, 0, 0)] * len(rounds)
    counts = [each["acknowledged"] for each in rounds]
    assert counts == sorted(set(counts)), "traffic went on in each round"
