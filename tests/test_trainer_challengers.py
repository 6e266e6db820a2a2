"""River's learners beside the champion: what they learn, and that they come back as they were."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from trainer.challengers import (
    Challenger,
    ForestChallenger,
    ForestSettings,
    LogisticChallenger,
    LogisticSettings,
    cost_per_row_us,
)
from trainer.labelled import FRAUD, JOINED, LEGITIMATE, Joined
from trainer.linear import Inputs, Linear
from trainer.metrics import roc_auc

SEED = 3
FEATURES = np.array([1, 4, 5, 8], np.int64)
N = 10
FOREST = ForestSettings(trees=3, rows_max=120, grace_rows=20)


def world(rows: int, seed: int) -> Joined:
    """Return rows whose fraud the base's logit tells in part, and feature 4 for the rest."""
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(rows, N)).astype(np.float32)
    vectors[random.random((rows, N)) < 0.05] = np.nan
    out: Any = np.zeros(rows, JOINED)
    out["transaction"] = np.arange(rows)
    out["logit"] = random.normal(-2.0, 1.5, rows)
    hidden = np.nan_to_num(vectors[:, 4]) > 1.0
    fraud = (random.random(rows) < 1 / (1 + np.exp(-out["logit"]))) | hidden
    out["verdict"] = np.where(fraud, FRAUD, LEGITIMATE)
    return Joined(out, vectors)


def inputs_of(joined: Joined) -> Inputs:
    return Inputs.fit(joined.vectors, joined.rows["logit"], FEATURES)


def predicted(challenger: Challenger, joined: Joined) -> NDArray[np.float64]:
    return challenger.predict(joined.vectors, joined.rows["logit"])


def saved(challenger: Challenger) -> Mapping[str, NDArray[Any]]:
    """Return the state after a way through a file without objects."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **challenger.to_arrays())
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def fresh(kind: str, joined: Joined) -> Challenger:
    inputs = inputs_of(joined)
    return LogisticChallenger(inputs) if kind == "logistic" else ForestChallenger(inputs, FOREST)


def restored(kind: str, arrays: Mapping[str, NDArray[Any]]) -> Challenger:
    if kind == "logistic":
        return LogisticChallenger.from_arrays(arrays)
    return ForestChallenger.from_arrays(arrays, FOREST)


@pytest.mark.parametrize("rows", [0, 1, 59, 60, 61, 119, 120, 121, 181, 300])
@pytest.mark.parametrize("kind", ["logistic", "forest"])
def test_restored_it_predicts_and_learns_on_to_the_same_bits(kind: str, rows: int) -> None:
    print(f"seed {SEED}, {rows} rows")
    joined, further = world(400, SEED), world(150, SEED + 1)
    challenger = fresh(kind, joined)
    for start in range(0, rows, 50):
        challenger.learn(joined[slice(start, min(start + 50, rows))])
        predicted(challenger, further[:20])  # to ask changes nothing
    again = restored(kind, saved(challenger))
    assert predicted(again, further).tobytes() == predicted(challenger, further).tobytes()
    for number in range(0, 150, 30):
        part = further[slice(number, number + 30)]
        challenger.learn(part)
        again.learn(part)
        assert predicted(again, joined).tobytes() == predicted(challenger, joined).tobytes()
    one, two = challenger.to_arrays(), again.to_arrays()
    assert {name: array.tobytes() for name, array in one.items()} == {
        name: array.tobytes() for name, array in two.items()
    }


def test_a_forest_with_an_odd_bound_comes_back_too() -> None:
    settings = ForestSettings(trees=2, rows_max=31, grace_rows=5)
    joined = world(200, SEED)
    challenger = ForestChallenger(inputs_of(joined), settings)
    for number in range(150):
        challenger.learn(joined[slice(number, number + 1)])
        if number % 9 == 0:
            again = ForestChallenger.from_arrays(saved(challenger), settings)
            assert predicted(again, joined).tobytes() == predicted(challenger, joined).tobytes()
    assert len(challenger.to_arrays()["learnt"]) <= 31


def test_a_forest_does_not_depend_on_how_python_hashes(tmp_path: Path) -> None:
    joined = world(200, SEED)
    challenger = fresh("forest", joined)
    challenger.learn(joined)
    np.savez(tmp_path / "state.npz", allow_pickle=False, **challenger.to_arrays())
    np.savez(tmp_path / "rows.npz", v=joined.vectors, l=joined.rows["logit"])
    code = (
        "import sys, numpy as np\n"
        "from trainer.challengers import ForestChallenger, ForestSettings\n"
        "state, rows = (np.load(f'{sys.argv[1]}/{n}.npz') for n in ('state', 'rows'))\n"
        "settings = ForestSettings(trees=3, rows_max=120, grace_rows=20)\n"
        "forest = ForestChallenger.from_arrays(state, settings)\n"
        "print(forest.predict(rows['v'], rows['l']).tobytes().hex())\n"
    )
    environment = {"PYTHONHASHSEED": "12345", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        check=True, capture_output=True, text=True, env=environment, timeout=120,
    )  # fmt: skip
    assert done.stdout.strip() == predicted(challenger, joined).tobytes().hex()


def test_a_logistic_challenger_begins_as_the_base() -> None:
    joined = world(300, SEED)
    logits = joined.rows["logit"]
    found = predicted(LogisticChallenger(inputs_of(joined)), joined)
    assert found == pytest.approx(1 / (1 + np.exp(-logits)), abs=1e-12)


def test_both_learn_what_the_base_does_not_know() -> None:
    print(f"seed {SEED}")
    joined, test = world(1_500, SEED), world(1_000, SEED + 9)
    base = roc_auc(test.rows["logit"], test.is_fraud)
    logistic, forest = fresh("logistic", joined), ForestChallenger(inputs_of(joined))
    for name, challenger in (("logistic", logistic), ("forest", forest)):
        challenger.learn(joined)
        auc = roc_auc(predicted(challenger, test), test.is_fraud)
        print(f"{name} {auc:.3f}, base {base:.3f}")
        assert auc > base + 0.02


@pytest.mark.parametrize("kind", ["logistic", "forest"])
def test_restarted_it_is_as_new(kind: str) -> None:
    joined = world(200, SEED)
    challenger, other = fresh(kind, joined), fresh(kind, joined)
    challenger.learn(joined)
    challenger.restart()
    assert predicted(challenger, joined).tobytes() == predicted(other, joined).tobytes()
    challenger.learn(joined[:90])
    other.learn(joined[:90])
    assert predicted(challenger, joined).tobytes() == predicted(other, joined).tobytes()


def test_the_exported_weights_say_what_the_challenger_says() -> None:
    joined = world(300, SEED)
    challenger = LogisticChallenger(inputs_of(joined))
    challenger.learn(joined)
    linear = challenger.export_linear()
    base = joined.rows["logit"].tolist()
    logits = [linear.logit(v, x) for v, x in zip(joined.vectors, base, strict=True)]
    probabilities = 1 / (1 + np.exp(-np.array(logits)))
    assert probabilities == pytest.approx(predicted(challenger, joined), rel=1e-12)


def test_a_forest_remembers_no_more_than_its_bound() -> None:
    joined = world(400, SEED)
    challenger = fresh("forest", joined)
    challenger.learn(joined)
    assert 60 <= len(challenger.to_arrays()["learnt"]) <= 120


def test_the_cost_of_a_row_is_a_figure() -> None:
    joined = world(50, SEED)
    challenger = fresh("logistic", joined)
    assert cost_per_row_us(challenger, joined.vectors, joined.rows["logit"]) > 0.0


def test_states_that_contradict_themselves_are_refused() -> None:
    joined = world(200, SEED)
    forest = fresh("forest", joined)
    forest.learn(joined[:100])
    arrays = forest.to_arrays()
    with pytest.raises(ValueError, match="100 rows"):
        ForestChallenger.from_arrays(arrays, ForestSettings(rows_max=50))
    with pytest.raises(ValueError, match="learnt"):
        ForestChallenger.from_arrays({**arrays, "learnt": arrays["learnt"][:, :2]}, FOREST)
    inputs = inputs_of(joined)
    with pytest.raises(ValueError, match="spread"):
        Inputs(inputs.features, inputs.mean, inputs.spread * 0.0)
    with pytest.raises(ValueError, match="float64"):
        Linear(inputs, np.zeros(3))
    with pytest.raises(ValueError, match="finite"):
        Linear(inputs, np.full(6, np.nan))
    with pytest.raises(ValueError, match="features"):
        Inputs(np.array([-1], np.int64), inputs.mean[:2], inputs.spread[:2])


def test_settings_without_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="rate"):
        LogisticSettings(rate=0.0)
    with pytest.raises(ValueError, match="rows_max"):
        ForestSettings(rows_max=1)
