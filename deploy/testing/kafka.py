"""A Kafka of real brokers for tests: KRaft, on loopback, in a folder of its own.

Owns the jars' cache, the brokers' settings and their processes. Must not know what a test writes
to a topic. Signals only processes that it started, and those end with the thread that started
them, however it ends.

The jars come by Maven, once, into build/kafka/<version>; FRAUD_KAFKA_JARS may name another folder.
"""

from __future__ import annotations

import base64
import ctypes
import fcntl
import hashlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.testing.certificates import Certificates, write_certificates

POM = Path(__file__).with_name("pom.xml")
JARS = Path(__file__).parents[2] / "build" / "kafka"

USER, PASSWORD = "tester", "tester-secret"

START_S = 90.0
STOP_S = 30.0
TOOL_S = 60.0
MAVEN_S = 240.0
_POLL_S = 0.02
# Below the ports that the system gives to clients, so that none takes one while a broker is down.
_PORTS = range(20_000, 32_000)
_STARTED = b"Kafka Server started"
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)

# A broker of a test is to start quickly; one that is measured, to be as quick as one of its kind.
_QUICK_START = ("-Xms128m", "-Xmx384m", "-XX:TieredStopAtLevel=1")
_MEASURED = ("-Xms1g", "-Xmx1g", "-Xmn700m")
_JAVA = (
    "-XX:+UseSerialGC",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
    "-Dorg.slf4j.simpleLogger.log.org.apache.kafka.common.config=warn",
)
_SETTINGS = {
    "process.roles": "broker,controller",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "listener.security.protocol.map": (
        "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL"
    ),
    "auto.create.topics.enable": "false",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.num.partitions": "4",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "log.retention.check.interval.ms": "1000",
    "log.initial.task.delay.ms": "1000",
    "log.segment.delete.delay.ms": "1000",
    "controlled.shutdown.enable": "true",
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    "log.cleaner.dedupe.buffer.size": "4194304",
}


def kafka_missing() -> str:
    """Return "" where brokers can be started, else what is missing."""
    missing = [name for name in ("java", "mvn") if shutil.which(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


def jars() -> Path:
    """Return the folder of the broker's jars, copied there by Maven where they are not yet.

    Several processes may call it at once: one copies, the others wait. Raises RuntimeError with
    what Maven said when it fails.
    """
    content = POM.read_text()
    versions = re.findall(r"<kafka\.version>([\d.]+)</kafka\.version>", content)
    directory = Path(os.environ.get("FRAUD_KAFKA_JARS") or JARS / versions[0])
    directory.mkdir(parents=True, exist_ok=True)
    stamp, digest = directory / "STAMP", hashlib.sha256(content.encode()).hexdigest()
    with (directory / "LOCK").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != digest:
            _copy_jars(directory)
            stamp.write_text(digest)
    return directory


def _copy_jars(directory: Path) -> None:
    for old in directory.glob("*.jar"):
        old.unlink()
    goal = ("dependency:copy-dependencies", f"-DoutputDirectory={directory}")
    _run(["mvn", "-q", "-B", "-f", str(POM), *goal, "-DincludeScope=runtime"], MAVEN_S)


def _run(command: list[str], timeout_s: float) -> None:
    done = subprocess.run(
        [shutil.which(command[0]) or command[0], *command[1:]],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=timeout_s,
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed with {done.returncode}: {done.stdout[-4000:]}")


def _java(main: str, *arguments: str, measured: bool = False) -> list[str]:
    options = (*(_MEASURED if measured else _QUICK_START), *_JAVA)
    return [shutil.which("java") or "java", *options, "-cp", f"{jars()}/*", main, *arguments]


def free_ports(count: int) -> list[int]:
    """Return loopback ports that nothing is bound to now, and that no client will be given."""
    found: list[int] = []
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"fewer than {count} ports are free in {_PORTS}")


def _die_with_parent(parent: int) -> Callable[[], None]:
    """Return what a child runs before exec, so that it never outlives a killed test."""

    def before_exec() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent died before prctl could tell
            os._exit(1)

    return before_exec


class Broker:
    """One broker, of which at most one process runs at a time; it keeps its ports and its data.

    ``ports`` maps a listener to its port. Its output is in ``log``, of all its lives.
    """

    def __init__(
        self, directory: Path, number: int, ports: Mapping[str, int], *, measured: bool = False
    ) -> None:
        self.number = number
        self._measured = measured
        self.ports = dict(ports)
        self.directory = directory / f"broker-{number}"
        self.log = self.directory / "broker.log"
        self.properties = self.directory / "server.properties"
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self._started_s = 0.0

    @property
    def running(self) -> bool:
        """Whether its process is there; a paused one is."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The id of its process. Raises RuntimeError where there is none."""
        if self._process is None or not self.running:
            raise RuntimeError(f"broker {self.number} does not run")
        return self._process.pid

    def format(self, cluster_id: str, settings: Mapping[str, str]) -> None:
        """Write its settings and lay out its folder; once, before the first start."""
        self.directory.mkdir(parents=True)
        lines = [f"{name}={value}\n" for name, value in settings.items()]
        self.properties.write_text("".join(lines))
        # One argument with its name, because an id may begin with a dash.
        tool = ["format", f"--cluster-id={cluster_id}", "-c", str(self.properties)]
        if "SASL_SSL" in self.ports:
            tool += ["--add-scram", f"SCRAM-SHA-512=[name={USER},password={PASSWORD}]"]
        _run(_java("kafka.tools.StorageTool", *tool), TOOL_S)

    def start(self) -> None:
        """Start its process; ``wait_until_ready`` waits for it."""
        if self.running:
            raise RuntimeError(f"broker {self.number} runs already")
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        self._started_s = time.monotonic()
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                _java("kafka.Kafka", str(self.properties), measured=self._measured),
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=_die_with_parent(os.getpid()),  # noqa: PLW1509 - it takes no lock
            )

    def wait_until_ready(self, timeout_s: float = START_S) -> float:
        """Return how many seconds its start took. Raises RuntimeError when it ends or is late."""
        while time.monotonic() < self._started_s + timeout_s:
            with self.log.open("rb") as log:
                log.seek(self._log_start)
                if _STARTED in log.read():
                    return time.monotonic() - self._started_s
            if not self.running:
                raise RuntimeError(f"broker {self.number} ended: {self._said()}")
            time.sleep(_POLL_S)
        raise RuntimeError(f"broker {self.number} not ready in {timeout_s} s: {self._said()}")

    def stop(self, timeout_s: float = STOP_S) -> None:
        """End it as an operator does; kill it when it takes too long, or is paused."""
        if self._process is None or not self.running:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it at once, as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def pause(self) -> None:
        """Freeze it: its connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused one go on."""
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> float:
        """Stop it if it runs, start it and wait; return how many seconds the start took."""
        self.stop()
        self.start()
        return self.wait_until_ready()

    def _said(self) -> str:
        return self.log.read_bytes()[self._log_start :][-4000:].decode(errors="replace")


class KafkaCluster:
    """Brokers, each a controller too, in ``directory``, which must not hold any yet.

    With ``tls`` each broker also listens with TLS (``bootstrap_ssl``), and with TLS and SCRAM-
    SHA-512 (``bootstrap_sasl``, as USER with PASSWORD), known by the CA in ``certificates``.

        with KafkaCluster(tmp_path / "kafka") as kafka:
            connect(kafka.bootstrap)

    All brokers start and stop together; one by one they are ``brokers``. The thread that starts
    one must live as long as the broker should. ``address`` is one of this machine's, without TLS.
    ``measured`` brokers have a compiler and a heap as in earnest, and take longer to be warm.
    """

    def __init__(
        self,
        directory: Path,
        brokers: int = 1,
        *,
        tls: bool = False,
        address: str = "127.0.0.1",
        measured: bool = False,
    ) -> None:
        listeners = ["CONTROLLER", "PLAINTEXT", *(["SSL", "SASL_SSL"] if tls else [])]
        ports = iter(free_ports(brokers * len(listeners)))
        self.directory = directory
        self.brokers = [
            Broker(directory, number, {name: next(ports) for name in listeners}, measured=measured)
            for number in range(1, brokers + 1)
        ]
        self.certificates: Certificates | None = None
        self._tls = tls
        self._address = address
        self._formatted = False

    @property
    def bootstrap(self) -> str:
        """The addresses without TLS, as clients take them."""
        return self._addresses("PLAINTEXT")

    @property
    def bootstrap_ssl(self) -> str:
        """The addresses with TLS and without a password."""
        return self._addresses("SSL")

    @property
    def bootstrap_sasl(self) -> str:
        """The addresses with TLS and a password."""
        return self._addresses("SASL_SSL")

    def start(self) -> float:
        """Format what is new, start every broker that does not run; return the seconds it took."""
        if not self._formatted:
            self._format()
        stopped = [broker for broker in self.brokers if not broker.running]
        for broker in stopped:
            broker.start()
        return max((broker.wait_until_ready() for broker in stopped), default=0.0)

    def stop(self) -> None:
        """End every broker; paused ones are killed."""
        # The last controllers cannot hand over to anybody, which only the kill would end.
        for broker in self.brokers:
            broker.stop(STOP_S if len(self.brokers) == 1 else 5.0)

    def kill(self) -> None:
        """End every broker at once."""
        for broker in self.brokers:
            broker.kill()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def _addresses(self, listener: str) -> str:
        return ",".join(f"{self._address}:{broker.ports[listener]}" for broker in self.brokers)

    def _format(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        if self._tls:
            self.certificates = write_certificates(self.directory)
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        for broker in self.brokers:
            broker.format(cluster_id, self._settings(broker))
        self._formatted = True

    def _settings(self, broker: Broker) -> dict[str, str]:
        count = len(self.brokers)
        listeners = {
            name: f"{name}://{self._address}:{port}" for name, port in broker.ports.items()
        }
        voters = [f"{b.number}@{self._address}:{b.ports['CONTROLLER']}" for b in self.brokers]
        replicas, in_sync = str(min(count, 3)), str(min(max(count - 1, 1), 2))
        settings = {
            **_SETTINGS,
            "node.id": str(broker.number),
            "log.dirs": str(broker.directory / "data"),
            "listeners": ",".join(listeners.values()),
            "advertised.listeners": ",".join(
                address for name, address in listeners.items() if name != "CONTROLLER"
            ),
            "controller.quorum.voters": ",".join(voters),
            "default.replication.factor": replicas,
            "min.insync.replicas": in_sync,
        }
        for topic in ("offsets.topic", "transaction.state.log", "share.coordinator.state.topic"):
            settings[f"{topic}.replication.factor"] = replicas
        for topic in ("transaction.state.log", "share.coordinator.state.topic"):
            settings[f"{topic}.min.isr"] = in_sync
        if self.certificates is not None:
            settings |= _tls_settings(self.certificates)
        return settings


def _tls_settings(certificates: Certificates) -> dict[str, str]:
    login = "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config"
    return {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(certificates.server),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(certificates.authority),
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        login: "org.apache.kafka.common.security.scram.ScramLoginModule required;",
    }
