"""Where the torture runs: namespaces of its own, so that nothing of it outlives or leaves it.

Owns what the machine allows: processes, network and mounts of our own (as root, or as root of a
user namespace), a second host with a network of its own, a small disk. Must not know what runs in
there. Where something is not allowed, the reason is told, never hidden.

    outside ──unshare──▶ sandbox: brokers, stages, clients   HUB on lo
                           ├── front 10.213.1.1/30 ── 10.213.1.2  host 1: its clients come here
                           └── back  10.213.2.1/30 ── 10.213.2.2  host 1: its way to HUB
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

MARK = "FRAUD_TORTURE_SANDBOX"
HUB = "10.213.0.1"
FRONT, BACK = "10.213.1", "10.213.2"
TOOL_S = 20.0
_UNSHARE = ("--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


def run(*command: str) -> str:
    """Run a tool of the system; return "" or what went wrong."""
    if shutil.which(command[0]) is None:
        return f"{command[0]} is not installed"
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=TOOL_S,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return f"{' '.join(command)}: {done.stderr.strip()}" if done.returncode else ""


def _must(*command: str) -> None:
    wrong = run(*command)
    if wrong:
        raise RuntimeError(wrong)


def enter(argv: Sequence[str]) -> str:
    """Go on as this command in a sandbox; return only where there is none, and say why."""
    if os.environ.get(MARK):
        return ""
    why = "unshare is not installed"
    for more in ((), ("--user", "--map-root-user")):
        why = run("unshare", *more, *_UNSHARE, "ip", "link", "set", "lo", "up")
        if not why:
            os.environ[MARK] = "1"
            command = ["unshare", *more, *_UNSHARE, sys.executable, *argv]
            os.execvp(command[0], command)  # noqa: S606 - it is ourselves
    return why


def inside() -> bool:
    """Whether this process is in a sandbox; then loopback and HUB are made ready."""
    if not os.environ.get(MARK):
        return False
    _must("ip", "link", "set", "lo", "up")
    _must("ip", "address", "replace", f"{HUB}/32", "dev", "lo")
    return True


class SecondHost:
    """A network of its own, with one link to its clients and one to all else, which can be cut."""

    ADDRESS = f"{FRONT}.2"

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            ("unshare", "--net", "sleep", "infinity"), stdin=subprocess.DEVNULL
        )
        _wait_for_other_network(self._holder.pid)
        for name, net in (("front", FRONT), ("back", BACK)):
            peer, pid = f"{name}-1", str(self._holder.pid)
            _must("ip", "link", "add", name, "type", "veth", "peer", "name", peer)
            _must("ip", "link", "set", peer, "netns", pid)
            _must("ip", "address", "add", f"{net}.1/30", "dev", name)
            _must("ip", "link", "set", name, "up")
            _must(*self.prefix, "ip", "address", "add", f"{net}.2/30", "dev", peer)
            _must(*self.prefix, "ip", "link", "set", peer, "up")
        _must(*self.prefix, "ip", "link", "set", "lo", "up")
        _must(*self.prefix, "ip", "route", "add", f"{HUB}/32", "via", f"{BACK}.1")

    @property
    def prefix(self) -> tuple[str, ...]:
        """What goes before a command that is to run there."""
        return ("nsenter", "--target", str(self._holder.pid), "--net")

    def cut(self) -> None:
        """Let what is sent between it and HUB vanish."""
        _must("ip", "link", "set", "back", "down")

    def heal(self) -> None:
        """Let it through again."""
        _must("ip", "link", "set", "back", "up")

    def close(self) -> None:
        """Give it up."""
        self._holder.send_signal(signal.SIGKILL)
        self._holder.wait(TOOL_S)


def _wait_for_other_network(pid: int) -> None:
    """Wait until a process that was just started has left our network."""
    own = Path("/proc/self/ns/net").readlink()
    for _ in range(1_000):
        if Path(f"/proc/{pid}/ns/net").readlink() != own:
            return
        os.sched_yield()
    raise RuntimeError(f"process {pid} did not leave our network")


class SmallDisk:
    """A file system in memory of so many bytes, on a directory."""

    def __init__(self, directory: Path, size: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        _must("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory))
        self._filler = directory / "filler"
        self._directory = directory

    def fill(self) -> None:
        """Take all that is free, to the last byte, though others write meanwhile."""
        disk = os.statvfs(self._directory)
        step = disk.f_bavail * disk.f_frsize
        with self._filler.open("ab", buffering=0) as file:
            while step:
                try:
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), step)
                except OSError:
                    step //= 2

    def free(self) -> None:
        """Give it back."""
        self._filler.unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount it, with all that is on it."""
        run("umount", "--lazy", str(self._directory))
