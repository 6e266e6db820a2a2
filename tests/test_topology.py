"""Cores and nodes from a made-up tree of topology files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fraudsvc.topology import Cpu, parse_cpu_list, plan, read_cpus, spread


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two packages of one node each, two cores a package, two threads a core: 0-3, then 4-7."""
    for cpu in range(8):
        topology = tmp_path / "cpu" / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        core = cpu % 4
        (topology / "physical_package_id").write_text(f"{core // 2}\n")
        (topology / "core_id").write_text(f"{core % 2}\n")
    for node, cpus in enumerate(("0-1,4-5", "2-3,6-7")):
        (tmp_path / "node" / f"node{node}").mkdir(parents=True)
        (tmp_path / "node" / f"node{node}" / "cpulist").write_text(cpus + "\n")
    return tmp_path


def test_reads_nodes_and_cores(root: Path) -> None:
    cpus = read_cpus(range(8), root)
    assert cpus[1] == Cpu(1, 0, (0, 1))
    assert cpus[6] == Cpu(6, 1, (1, 0))


def test_physical_cores_come_before_second_threads_and_nodes_are_filled(root: Path) -> None:
    assert [cpu.number for cpu in spread(read_cpus(range(8), root))] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert plan(3, range(8), root) == [frozenset({0}), frozenset({1}), frozenset({2})]


def test_only_allowed_cpus_are_used(root: Path) -> None:
    # 3 and 7 are threads of one core, so 7 comes last.
    assert plan(3, {3, 7, 6}, root) == [frozenset({3}), frozenset({6}), frozenset({7})]


def test_more_workers_than_cpus_share(root: Path) -> None:
    assert plan(3, {1, 2}, root) == [frozenset({1}), frozenset({2}), frozenset({1})]


def test_hidden_files_make_each_cpu_a_core_of_node_zero(tmp_path: Path) -> None:
    assert plan(2, {4, 9}, tmp_path) == [frozenset({4}), frozenset({9})]


def test_this_machine_gives_cpus_of_the_affinity_mask() -> None:
    allowed = os.sched_getaffinity(0)
    assert all(cpus <= allowed and len(cpus) == 1 for cpus in plan(5))


def test_no_workers_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        plan(0, range(8), root)


@given(st.sets(st.integers(0, 300)))
def test_cpu_lists_are_read_back(numbers: set[int]) -> None:
    assert parse_cpu_list(",".join(map(str, sorted(numbers))) + "\n") == numbers
    if numbers:
        low, high = min(numbers), max(numbers)
        assert parse_cpu_list(f"{low}-{high}") == set(range(low, high + 1))
