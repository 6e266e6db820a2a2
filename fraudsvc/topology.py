"""Which core each worker gets: from the system's own topology files.

Owns the order in which cores are given out. Must not pin anything itself: a worker does that
with os.sched_setaffinity before it starts a thread.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

SYSTEM_ROOT = Path("/sys/devices/system")
_NODE = re.compile(r"node(\d+)")


class Cpu(NamedTuple):
    """One logical CPU: its number, its NUMA node, and its physical core (package, core)."""

    number: int
    node: int
    core: tuple[int, int]


def read_cpus(allowed: Iterable[int] | None = None, root: Path = SYSTEM_ROOT) -> list[Cpu]:
    """Return the CPUs that this process may use, by number.

    ``allowed`` defaults to os.sched_getaffinity. A CPU whose files are missing (containers may
    hide them) counts as a core of its own on node 0.
    """
    numbers = sorted(os.sched_getaffinity(0) if allowed is None else set(allowed))
    nodes = _nodes(root)
    return [Cpu(number, nodes.get(number, 0), _core(root, number)) for number in numbers]


def spread(cpus: Iterable[Cpu]) -> list[Cpu]:
    """Return the CPUs in the order to use them.

    Each physical core once before any second thread of one, and one NUMA node to its end before
    the next, so that few workers share one node's cache and memory.
    """
    threads_seen: dict[tuple[int, int], int] = {}
    ranked = []
    for cpu in sorted(cpus):
        thread = threads_seen.get(cpu.core, 0)
        threads_seen[cpu.core] = thread + 1
        ranked.append((thread, cpu.node, cpu.number, cpu))
    return [cpu for *_, cpu in sorted(ranked)]


def plan(
    workers: int, allowed: Iterable[int] | None = None, root: Path = SYSTEM_ROOT
) -> list[frozenset[int]]:
    """Return for each worker the set of CPUs to pin it to: one each, shared when they run out.

    Raises ValueError for fewer than one worker.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    order = spread(read_cpus(allowed, root))
    return [frozenset({order[worker % len(order)].number}) for worker in range(workers)]


def parse_cpu_list(text: str) -> set[int]:
    """Return the numbers of a kernel CPU list such as "0-3,8,10-11"; empty for an empty text."""
    numbers: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return numbers


def _nodes(root: Path) -> dict[int, int]:
    found: dict[int, int] = {}
    for path in sorted(root.glob("node/node*/cpulist")):
        match = _NODE.fullmatch(path.parent.name)
        if match:
            cpus = parse_cpu_list(path.read_text(encoding="ascii"))
            found.update(dict.fromkeys(cpus, int(match[1])))
    return found


def _core(root: Path, number: int) -> tuple[int, int]:
    topology = root / "cpu" / f"cpu{number}" / "topology"
    try:
        package = int((topology / "physical_package_id").read_text(encoding="ascii"))
        return package, int((topology / "core_id").read_text(encoding="ascii"))
    except OSError:
        return -1, number


def cpu_flags(workers: int, pin: bool) -> list[list[str]]:
    """Return for each worker the flag that gives it a core of its own; none without ``pin``."""
    if not pin:
        return [[] for _ in range(workers)]
    return [["--cpus", ",".join(map(str, sorted(cpus)))] for cpus in plan(workers)]
