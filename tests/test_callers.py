"""Who may call: TLS, certificates that change, roles, tokens, rates; over real connections."""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from fraud.v1 import fraud_service_pb2 as pb
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey

from deploy.testing.certificates import HOSTS, Authority, Pair
from fraudsvc.callers.certificates import CertificateError, Certificates, TlsFiles
from fraudsvc.callers.gate import Gate
from fraudsvc.callers.roles import Bucket, CallersError, parse_callers
from fraudsvc.callers.tokens import KNOWN_MAX, Tokens
from fraudsvc.client import ClientError, ClientSettings, FraudClient, Tls
from fraudsvc.practice import practise
from fraudsvc.server import SERVICE, Guard, Server, ServerSettings
from tests.conftest import Host, Payments, process, serving, until

SETTINGS = ClientSettings(deadline_ms=120_000.0, channels=1)
FILE = """
[tokens]
jwks = "keys.json"
issuer = "https://issuer.example"
audience = "fraudsvc"

[callers."payments.example"]
roles = ["score"]

[callers."spiffe://shop/desk"]
roles = ["report", "read"]

[callers.operator]
roles = ["operate", "read"]

[callers.slow]
roles = ["score"]
calls_per_second = 0.001
burst = 2
"""
NOW_S = 1_800_000_000.0


def keys(*held: ECKey) -> bytes:
    return json.dumps({"keys": [key.as_dict(private=False) for key in held]}).encode()


def token(key: ECKey, subject: str, **more: Any) -> str:
    claims = {
        "iss": "https://issuer.example", "aud": "fraudsvc", "sub": subject,
        "exp": int(time.time()) + 600,
    }  # fmt: skip
    claims.update(more)
    header = {"alg": "ES256", "kid": key.kid}
    return jwt.encode(header, {k: v for k, v in claims.items() if v is not None}, key)


@dataclass
class Port:
    """A server that asks for certificates, and what makes its callers."""

    folder: Path
    authority: Authority
    pair: Pair
    key: ECKey
    gate: Gate
    told: list[str]
    server: Server
    payments: Payments

    def certificate(self, name: str, *uris: str) -> Pair:
        made = Pair(self.folder / f"{name}.crt", self.folder / f"{name}.key")
        hosts = [x509.UniformResourceIdentifier(uri) for uri in uris]
        return self.authority.write(made, name, hosts or [x509.DNSName("client.example")])

    def client(self, pair: Pair, **more: Any) -> FraudClient:
        tls = Tls(self.authority.path, pair.certificate, pair.key)
        return FraudClient(f"localhost:{self.server.port}", SETTINGS, tls=tls, **more)


@pytest.fixture
def port(tmp_path: Path) -> Iterator[Port]:
    host = Host(tmp_path, None)
    practise(host.policy)  # no first call waits for a kernel
    authority = Authority(tmp_path / "ca.pem")
    pair = authority.write(Pair(tmp_path / "server.crt", tmp_path / "server.key"), "localhost")
    key = ECKey.generate_key("P-256", {"kid": "one"})
    (tmp_path / "keys.json").write_bytes(keys(key))
    (tmp_path / "callers.toml").write_text(FILE)
    told: list[str] = []
    gate = Gate(tmp_path / "callers.toml", lambda error: told.append(str(error)))
    files = TlsFiles(pair.certificate, pair.key, authority.path)
    guard = Guard(Certificates(files, told.append).credentials(), gate)
    settings = ServerSettings(wait_ms_max=60_000.0, linger_s=0.0, reflection=True)
    server = Server(host.scorer().scorer, "127.0.0.1:0", settings, guard=guard)
    server.start()
    yield Port(tmp_path, authority, pair, key, gate, told, server, Payments())
    server.stop()
    host.close()


def reason(call: Callable[[], Any]) -> str:
    with pytest.raises(ClientError) as caught:
        call()
    return caught.value.failure.reason or caught.value.failure.code


def test_a_certificate_gives_the_roles_of_its_names(port: Port) -> None:
    payment = port.payments.one()
    with port.client(port.certificate("payments.example")) as payments:
        decision_id = payments.score(payment).decision_id
        assert payments.score_batch([port.payments.one()])
        label = port.payments.label(payment.transaction_id)
        assert reason(lambda: payments.report_labels([label])) == "NOT_ALLOWED"
        assert reason(lambda: payments.get_decision(decision_id)) == "NOT_ALLOWED"
    with port.client(port.certificate("a desk", "spiffe://shop/desk")) as desk:
        assert desk.report_labels([label])
        assert desk.get_decision(decision_id).transaction == payment
        assert reason(lambda: desk.score(payment)) == "NOT_ALLOWED"
    with port.client(port.certificate("stranger")) as stranger:
        assert reason(lambda: stranger.score(payment)) == "NOT_ALLOWED"


def test_without_a_certificate_of_the_authority_there_is_no_connection(port: Port) -> None:
    short = ClientSettings(deadline_ms=3_000.0, channels=1)
    target = f"localhost:{port.server.port}"
    foreign = Authority(port.folder / "foreign.pem")
    other = foreign.write(Pair(port.folder / "f.crt", port.folder / "f.key"), "payments.example")
    for tls in (
        Tls(port.authority.path),
        Tls(port.authority.path, other.certificate, other.key),
        Tls(foreign.path),
        None,
    ):
        with FraudClient(target, short, tls=tls) as client:
            code = reason(partial(client.score, port.payments.one()))
            assert code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")


def test_a_token_names_the_caller_whatever_the_certificate_says(port: Port) -> None:
    pair = port.certificate("operator")
    good = token(port.key, "payments.example")
    with port.client(pair, token=lambda: good) as client:
        assert client.score(port.payments.one()).decision_id
        assert client.score(port.payments.one()).decision_id
    other = ECKey.generate_key("P-256", {"kid": "one"})
    secret = OctKey.import_key(keys(port.key))
    now_s = int(time.time())
    bad = {
        "": "UNAUTHENTICATED",
        "no.token.": "UNAUTHENTICATED",
        "x" * 6_000: "UNAUTHENTICATED",
        token(other, "payments.example"): "UNAUTHENTICATED",
        jwt.encode({"alg": "HS256", "kid": "one"}, {"sub": "x"}, secret): "UNAUTHENTICATED",
        token(port.key, "payments.example", exp=now_s - 60): "UNAUTHENTICATED",
        token(port.key, "payments.example", exp=None): "UNAUTHENTICATED",
        token(port.key, "payments.example", nbf=now_s + 600): "UNAUTHENTICATED",
        token(port.key, "payments.example", iss="https://else.example"): "UNAUTHENTICATED",
        token(port.key, "payments.example", aud="another"): "UNAUTHENTICATED",
        token(port.key, "nobody"): "NOT_ALLOWED",
        token(port.key, "operator"): "NOT_ALLOWED",
    }
    for text, expected in bad.items():
        with port.client(pair, token=lambda text=text: text) as client:
            assert reason(lambda: client.score(port.payments.one())) == expected, text


def test_a_rate_is_kept_and_says_when_to_come_again(port: Port) -> None:
    with port.client(port.certificate("slow")) as slow:
        assert slow.score(port.payments.one()).decision_id
        assert slow.score(port.payments.one()).decision_id
        with pytest.raises(ClientError) as caught:
            slow.score(port.payments.one(), deadline_ms=90.0)
    assert caught.value.failure.reason == "RATE_LIMITED"
    assert caught.value.failure.retry_after_s


def test_reflection_is_for_operators_and_health_for_all(port: Port) -> None:
    def database(pair: Pair) -> ProtoReflectionDescriptorDatabase:
        credentials = Tls(port.authority.path, pair.certificate, pair.key).credentials()
        channel = grpc.secure_channel(f"localhost:{port.server.port}", credentials)
        return ProtoReflectionDescriptorDatabase(channel)

    assert SERVICE in database(port.certificate("operator")).get_services()
    with pytest.raises(grpc.RpcError) as caught:
        database(port.certificate("payments.example")).get_services()
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_files_of_callers_and_keys_are_taken_up_again(port: Port) -> None:
    pair = port.certificate("stranger")
    with port.client(pair) as client:
        (port.folder / "callers.toml").write_text(FILE + '[callers.stranger]\nroles=["all"]\n')
        port.gate.poll()
        port.gate.poll()
        assert len(port.told) == 1
        assert "callers.'stranger'" in port.told[0]
        assert reason(lambda: client.score(port.payments.one())) == "NOT_ALLOWED"
        (port.folder / "callers.toml").write_text(FILE + '[callers.stranger]\nroles=["score"]\n')
        port.gate.poll()
        assert client.score(port.payments.one()).decision_id
    new = ECKey.generate_key("P-256", {"kid": "two"})
    by_new = token(new, "payments.example")
    with port.client(pair, token=lambda: by_new) as client:
        assert reason(lambda: client.score(port.payments.one())) == "UNAUTHENTICATED"
        (port.folder / "keys.json").write_bytes(keys(port.key, new))
        port.gate.poll()
        assert client.score(port.payments.one()).decision_id
        (port.folder / "keys.json").write_bytes(b"{}")
        port.gate.poll()
        assert client.score(port.payments.one()).decision_id
        assert "no JWK set" in port.told[-1] or "public keys" in port.told[-1]


def serial_of(port: Port) -> int:
    """Return the number of the certificate that a new connection is shown."""
    pair = port.certificate("payments.example")
    context = ssl.create_default_context(cafile=str(port.authority.path))
    context.load_cert_chain(pair.certificate, pair.key)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port.server.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as wrapped,
    ):
        shown = wrapped.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown).serial_number


def test_a_new_certificate_is_served_without_a_restart_and_a_broken_one_is_not(port: Port) -> None:
    first = serial_of(port)
    with port.client(port.certificate("payments.example")) as client:
        assert client.score(port.payments.one()).decision_id
        # a broken file: the one in use stays, and it is said once
        kept = port.pair.certificate.read_bytes()
        port.pair.certificate.write_bytes(b"-----BEGIN CERTIFICATE-----\nnonsense\n")
        assert serial_of(port) == serial_of(port) == first
        assert [text for text in port.told if "refused" in text] == port.told[-1:]
        # the certificate of another key
        other = port.authority.write(
            Pair(port.folder / "o.crt", port.folder / "o.key"), "localhost", HOSTS
        )
        port.pair.certificate.write_bytes(other.certificate.read_bytes())
        assert serial_of(port) == first
        assert "is not the key of" in port.told[-1]
        assert kept != other.certificate.read_bytes()
        # with its key it is served, and connections that are there go on
        port.pair.key.write_bytes(other.key.read_bytes())
        assert serial_of(port) != first
        assert client.score(port.payments.one()).decision_id
    with port.client(port.certificate("payments.example")) as client:
        assert client.score(port.payments.one()).decision_id


def test_first_files_that_cannot_be_used_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match=r"none.crt"):
        Certificates(TlsFiles(tmp_path / "none.crt", tmp_path / "none.key"), print)
    with pytest.raises(CallersError, match=r"none.toml"):
        Gate(tmp_path / "none.toml", print)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("callers = 1", "callers is a table"),
        ("[callers.a]\nroles = []", "roles is a list"),
        ("[callers.a]\nroles = ['admin']", "roles is a list"),
        ("[callers.a]\nroles = ['score']\nrate = 1", "unknown rate"),
        ("[callers.a]\nroles = ['score']\ncalls_per_second = 0", "above 0"),
        ("[callers.a]\nroles = ['score']\ncalls_per_second = nan", "above 0"),
        ("[callers.a]\nroles = ['score']\nburst = 1", "burst wants"),
        ("[callers.'']\nroles = ['score']", "1 to 256"),
        ("[tokens]\njwks = 'a'", "all are needed"),
        ("[tokens]\njwks='a'\nissuer='b'\naudience='c'\nleeway_s=9999", "0 to 600"),
        ("[other]", "unknown other"),
        ("not toml", "not TOML"),
        ("a = " + "[" * 5_000, "nested too deeply"),
    ],
)
def test_a_file_of_callers_that_is_wrong_says_where(text: str, why: str) -> None:
    with pytest.raises(CallersError, match=why):
        parse_callers(text.encode(), lambda: 0.0)


def test_a_bucket_fills_with_time_and_no_further() -> None:
    now_s = 0.0
    bucket = Bucket(10.0, 3.0, lambda: now_s)
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]
    now_s = 0.1
    assert [bucket.take() for _ in range(2)] == [True, False]
    now_s = 1_000.0
    assert sum(bucket.take() for _ in range(10)) == 3
    now_s = 0.0  # a clock that jumps back gives nothing
    assert not bucket.take()


def test_a_token_is_good_until_it_ends_and_few_are_known() -> None:
    key = ECKey.generate_key("P-256", {"kid": "one"})
    rules = parse_callers(FILE.encode(), lambda: 0.0).tokens
    assert rules is not None
    now_s = NOW_S
    tokens = Tokens(rules, keys(key), lambda: now_s)
    text = token(key, "me", exp=int(NOW_S) + 10)
    assert tokens.name_of(text) == b"me"
    now_s += 39
    assert tokens.name_of(text) == b"me"  # 30 s for clocks that differ
    now_s += 2
    assert tokens.name_of(text) is None
    for number in range(20):
        tokens._keep(number.to_bytes(4, "big"), (b"me", NOW_S))
    assert len(tokens._known) <= KNOWN_MAX
    with pytest.raises(CallersError, match="no shared secret"):
        Tokens(rules, json.dumps({"keys": [OctKey.generate_key().as_dict()]}).encode(), time.time)


def test_metadata_and_connections_are_bounded(tmp_path: Path) -> None:
    host = Host(tmp_path, None)
    payments = Payments()
    with serving(host.scorer(), connections_max=3) as (server, client):
        for size, expected in ((4_000, "OK"), (9_000, "RESOURCE_EXHAUSTED")):
            call: Any = client.stub.Score.with_call
            request = pb.ScoreRequest(transaction=payments.one())
            try:
                call(request, timeout=20, metadata=(("x", "v" * size),))
                code = "OK"
            except grpc.RpcError as error:
                code = error.code().name
            assert code == expected
        short = ClientSettings(deadline_ms=3_000.0, channels=8)
        with FraudClient(f"127.0.0.1:{server.port}", short) as many:
            assert not many.connect(2.0)
        assert client.stub.Score(request, timeout=20).assessment.decision_id
    host.close()


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (("--address", "0.0.0.0:0"), "--plaintext"),
        (("--tls-cert", "a.crt"), "go together"),
        (("--client-ca", "ca.pem"), "wants --tls-cert"),
        (("--callers", "callers.toml"), "wants TLS"),
        (("--tls-cert", "a.crt", "--tls-key", "a.key"), "a.crt"),
    ],
)
def test_options_that_leave_a_port_open_are_refused(
    tmp_path: Path, more: tuple[str, ...], why: str
) -> None:
    command = ("fraudsvc", "serve", "--log", f"file://{tmp_path}/log", "--address", "127.0.0.1:0")
    with process(tmp_path / "output", *command, *more) as serve:
        assert until(serve.popen.poll, "the refusal", 120.0) == 2
    assert why in serve.said.splitlines()[-1]
