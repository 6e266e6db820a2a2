"""The file of former ids: what it leads to, and what is no such file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featurizer.eventlog import LogError
from featurizer.former_ids import FILE, FormerIds, write_former_ids

INT64 = np.iinfo(np.int64)


def test_each_request_is_found_by_every_hash_that_it_had(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    former, now = rng.integers(INT64.min, INT64.max, (2, 1_000))
    write_former_ids(tmp_path, former, now)
    read = FormerIds(tmp_path)
    assert [read.now(each) for each in former.tolist()] == now.tolist()
    assert [read.now(each) for each in now.tolist()] == now.tolist()
    for each in (INT64.min, 0, INT64.max):
        assert read.now(each) == each


def test_a_log_without_the_file_knows_no_other_ids(tmp_path: Path) -> None:
    assert FormerIds(tmp_path).now(-3) == -3
    write_former_ids(tmp_path, np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert FormerIds(tmp_path).now(-3) == -3


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    write_former_ids(tmp_path, np.arange(9), np.arange(9))
    whole = (tmp_path / FILE).read_bytes()
    contents = ("", "cannot be read"), ("no former ids", "cannot"), ("of another form!", "holds no")
    for content, why in contents:
        (tmp_path / FILE).write_text(content)
        with pytest.raises(LogError, match=why):
            FormerIds(tmp_path)
    (tmp_path / FILE).write_bytes(whole[:-8])
    with pytest.raises(LogError, match="holds no former ids"):
        FormerIds(tmp_path)
