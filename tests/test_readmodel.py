"""The read model: the same answers from SQLite and PostgreSQL, one position for all rows."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from featurizer.lags import Lags
from featurizer.spans import SCORE, Context, Kind, Span
from fraudsvc.console.readmodel import LOG, OTLP, REVIEW, Changes, ReadModel, ReadModelError, Row
from tests.conftest import free_port, until


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Run a server of its own, as a user that it accepts."""
    debian = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")))
    places = os.pathsep.join([os.environ["PATH"], *debian])
    initdb, server = (shutil.which(name, path=places) for name in ("initdb", "postgres"))
    if initdb is None or server is None:
        if os.environ.get("CI"):
            raise RuntimeError("PostgreSQL is not installed")
        pytest.skip("PostgreSQL is not installed")
    port, data = free_port(), folder / "postgres"
    data.mkdir()
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    if os.getuid() == 0:
        os.chown(data, 65534, 65534)
        for parent in data.parents[:4]:
            parent.chmod(parent.stat().st_mode | 0o111)
    as_user = user if os.getuid() == 0 else []
    subprocess.run(
        [*as_user, initdb, "--pgdata", str(data), "--username", "fraud", "--auth", "trust",
         "--no-sync"], check=True, capture_output=True, timeout=60, cwd="/",
    )  # fmt: skip
    argv = [
        *as_user, server, "-D", str(data), "-p", str(port), "-c", "listen_addresses=127.0.0.1",
        "-c", "unix_socket_directories=", "-c", "fsync=off",
    ]  # fmt: skip
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL, cwd="/") as running:
        url = f"postgresql+psycopg://fraud@127.0.0.1:{port}/postgres"
        try:
            until(lambda: _answers(url), "PostgreSQL")
            yield url
        finally:
            running.terminate()


def _answers(url: str) -> bool:
    try:
        model = ReadModel(url)
        model.migrate()
        model.close()
    except ReadModelError:
        return False
    return True


@pytest.fixture(params=["sqlite", "postgres"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ReadModel]:
    with contextlib.ExitStack() as stack:
        url = f"sqlite:///{tmp_path}/readmodel.sqlite"
        if request.param == "postgres":
            url = stack.enter_context(postgres(tmp_path))
        made = ReadModel(url)
        made.migrate()
        stack.callback(made.close)
        yield made


def a_row(number: int, **more: Any) -> dict[str, Any]:
    row = {
        "decision_id": f"{number:036}", "position": number, "trace_id": f"{number:032x}",
        "receive_time_ms": 1_000 * number, "outcome": 1, "rung": 1, "score": 0.1,
        "expected_loss": 1.0 * number, "amount_minor": 100, "currency_code": "EUR",
        "transaction_id": f"t-{number}", "customer_id": "c", "merchant_id": "",
        "model_version": "m", "policy_version": "p", "used_ns": 1, "kept": "share",
        "codes": "[]", "is_open": False,
        "body": b"",
    }  # fmt: skip
    return {**row, **more}


def a_span(
    trace: str, span: str, name: str, kind: Kind, parent: str = "", links: tuple[Context, ...] = ()
) -> Span:
    context = Context(trace * 32, span * 16)
    told = {"fraud.outcome" if name == SCORE else "fraud.change": "é"}
    return Span(context, parent, name, kind, int(span, 16), 99, told, links, "s")


def test_rows_are_added_once_and_with_their_position(model: ReadModel) -> None:
    assert model.position("a") is None
    changes = Changes(decisions=[a_row(1), a_row(2, outcome=REVIEW, is_open=True)])
    for _ in range(2):
        model.write(changes, LOG, "a", 77)
    assert (model.position("a"), model.count()) == (77, 2)
    with pytest.raises(ReadModelError):
        model.write(Changes(decisions=[a_row(3), {"decision_id": "x"}]), LOG, "a", 99)
    assert (model.position("a"), model.count()) == (77, 2), "all or nothing"
    found = model.decision_of("t-2")
    assert found is not None
    assert found["decision_id"] == a_row(2)["decision_id"]
    model.migrate()  # again changes nothing
    assert model.count() == 2


def test_pages_follow_one_another_without_a_gap(model: ReadModel) -> None:
    rows: list[Row] = [
        a_row(n, receive_time_ms=n // 3, expected_loss=n / 7, outcome=REVIEW, is_open=n % 2 == 0)
        for n in range(25)
    ]
    model.write(Changes(decisions=rows), LOG)
    for queue, expected in (
        (False, sorted(rows, key=lambda r: (r["receive_time_ms"], r["decision_id"]))[::-1]),
        (True, sorted(rows[::2], key=lambda r: r["expected_loss"])[::-1]),
    ):
        seen: list[str] = []
        after = ""
        while True:
            page, after = model.decisions(queue=queue, after=after, limit=4)
            seen += [row["decision_id"] for row in page]
            if not after:
                break
        assert seen == [row["decision_id"] for row in expected]
    model.write(Changes(opened={rows[24]["decision_id"]: False}), LOG)
    first, _ = model.decisions(queue=True, limit=1)
    assert first[0]["decision_id"] == rows[22]["decision_id"]


def test_a_trace_comes_with_what_it_led_to_and_no_more(model: ReadModel) -> None:
    call = a_span("1", "1", SCORE, Kind.SERVER)
    step = a_span("1", "2", "view", Kind.INTERNAL, parent="1" * 16)
    fold = a_span("2", "3", "process", Kind.CONSUMER, links=(call.context,))
    label = a_span("3", "4", "label", Kind.SERVER, links=(call.context,))
    train = a_span("4", "5", "train", Kind.CONSUMER, links=(label.context,))
    swap = a_span("4", "6", "swap", Kind.INTERNAL, parent="5" * 16)
    following = a_span("5", "7", SCORE, Kind.SERVER, links=(swap.context,))
    its_step = a_span("5", "8", "view", Kind.INTERNAL, parent="7" * 16)
    its_fold = a_span("6", "9", "process", Kind.CONSUMER, links=(following.context,))
    other = a_span("7", "a", SCORE, Kind.SERVER)
    log = [call, step, label, train, swap, following, its_step, other]
    model.write(Changes(spans=log), LOG)
    model.write(Changes(spans=[fold, its_fold]), OTLP)
    assert model.trace("1" * 32) == [call, step, fold, label, train, swap, following]
    model.forget()
    assert model.trace("2" * 32) == [fold], "what came by OTLP stays"
    assert model.trace("1" * 32) == []


def test_the_oldest_go(model: ReadModel) -> None:
    model.write(Changes(decisions=[a_row(n) for n in range(1, 10)]), LOG)
    model.write(Changes(spans=[a_span("1", n, "x", Kind.INTERNAL) for n in "123"]), OTLP)
    model.drop_oldest(4, 3)
    assert [row["position"] for row in model.decisions()[0]] == [9, 8, 7, 6]
    assert [span.start_ns for span in model.trace("1" * 32)] == [3]


def test_what_cannot_be_a_read_model_is_said_in_a_line(tmp_path: Path) -> None:
    for url in ("nothing", "sqlite:////nowhere/at/all.sqlite"):
        with pytest.raises(ReadModelError) as caught:
            ReadModel(url).migrate()
        assert "\n" not in str(caught.value)
    with pytest.raises(ReadModelError, match="the console makes it"):
        ReadModel(f"sqlite:///{tmp_path}/none.sqlite", existing=True)
    assert not (tmp_path / "none.sqlite").exists()


def test_a_lag_is_as_old_as_the_first_look_that_saw_more() -> None:
    lags = Lags()
    assert lags.of(0, 0.0) == (0, 0.0)
    for now_s, end in ((1.0, 100), (2.0, 100), (3.0, 300)):
        lags.look(now_s, end)
    assert lags.of(0, 5.0) == (300, 4.0)
    assert lags.of(100, 5.0) == (200, 2.0)
    assert lags.of(300, 5.0) == (0, 0.0)
