"""The service's certificates are replaced while calls run.

Owns the order in which files change, and how it is seen what a new connection meets. Must not know
the load, nor what is asked of the figures.
"""

from __future__ import annotations

import socket
import ssl
from typing import Final

import grpc

from loadgen.certificates import SERVERS, Certificates, Pair
from loadgen.client import Identity, TargetUnreachableError, connect
from loadgen.faults import CALL_S, GREETING, Figures, Scene
from loadgen.model_faults import is_heard
from loadgen.system import UnfitError

NO_CERTIFICATE: Final = b"-----BEGIN CERTIFICATE-----\nbm90aGluZw==\n-----END CERTIFICATE-----\n"


def rotate(scene: Scene) -> Figures:
    """Replace certificate and key again and again; then by rubbish; then who signs callers.

    A certificate whose key is not there yet must not be shown, nor one that is none.
    """
    files = scene.system.certificates
    if files is None:
        raise UnfitError("the service has no certificates that could be replaced here")
    counts = _Counts(scene, files)
    with scene.lasting():
        shown = files.server(0)
        for number in range(1, SERVERS):
            before, shown = shown, files.server(number)
            files.put("live.crt", shown.certificate)
            counts.look(before)
            files.put("live.key", shown.key)
            counts.look(shown)
            counts.call()
            scene.stop.wait(scene.hold_s / SERVERS)
        files.put("live.crt", NO_CERTIFICATE)
        counts.look(shown)
        files.put("live.crt", shown.certificate)
        counts.look_for_strangers(files.caller, files.stranger)
        files.put("callers.pem", files.other_authority)
        counts.look_for_strangers(files.stranger, files.caller)
        files.put("callers.pem", files.authority)
        counts.look_for_strangers(files.caller, files.stranger)
    return {
        "rotations": float(SERVERS - 1), "certificates_stale": float(counts.stale),
        "connections_failed": float(counts.failed), "strangers": float(counts.strangers),
    }  # fmt: skip


class _Counts:
    """What new connections met: another certificate than the newest, a failure, a stranger in."""

    def __init__(self, scene: Scene, files: Certificates) -> None:
        self._scene, self._files = scene, files
        self.stale = self.failed = self.strangers = 0

    def look(self, expected: Pair) -> None:
        """Connect, and see which certificate is shown."""
        shown = greeted(self._scene.system.address, self._files.caller)
        self.failed += shown is None
        wanted = ssl.PEM_cert_to_DER_cert(expected.certificate.read_text())
        self.stale += shown is not None and shown != wanted

    def call(self) -> None:
        """Connect and call; who is shed was let in."""
        system = self._scene.system
        try:
            with connect(system.address, 1, CALL_S, identity=self._files.caller) as (channel,):
                self.failed += not is_heard(channel)
        except (TargetUnreachableError, grpc.RpcError):
            self.failed += 1

    def look_for_strangers(self, caller: Identity, stranger: Identity) -> None:
        """Connect as one who may call, and as one who may not."""
        address = self._scene.system.address
        self.failed += greeted(address, caller) is None
        self.strangers += greeted(address, stranger) is not None


def greeted(address: str, caller: Identity) -> bytes | None:
    """Return the certificate (DER) that a new connection is shown, None where it is turned away.

    By TLS 1.3 the server judges the caller's after the handshake, so it must have said something.
    """
    host, _, port = address.rpartition(":")
    context = caller.context()
    try:
        with (
            socket.create_connection((host, int(port)), CALL_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as made,
        ):
            made.sendall(GREETING)
            return made.getpeercert(binary_form=True) if made.recv(1) else None
    except OSError:  # what TLS says is one, too
        return None
