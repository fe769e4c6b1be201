"""The carrier over TLS, with certificates made for the occasion; on both event loops."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway.carrier import Carrier, ConnectTimeout, Origin, ReplyBroken, Timeouts, TlsFailed
from tests.support.misbehaving import HEAD, Misbehaving, Wire


class Authority:
    """A certificate authority that lives as long as one test module."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority for one test run")])
        self.certificate = self._sign(self.name, self.key, [], authority=True)

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, names: list[x509.GeneralName], authority: bool
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        if authority:
            usage = x509.KeyUsage(
                digital_signature=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=True,
                crl_sign=True,
                encipher_only=False,
                decipher_only=False,
            )
            builder = builder.add_extension(usage, critical=True)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def server(self, *names: x509.GeneralName) -> ssl.SSLContext:
        """What a server with a certificate for these names listens with."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a target")])
        certificate = self._sign(subject, key, list(names), authority=False)
        file = self.folder / "server.pem"
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context

    def trust(self) -> ssl.SSLContext:
        """What a client that trusts this authority connects with."""
        return ssl.create_default_context(cadata=self.pem())

    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()


LOOPBACK = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
async def upstream(authority: Authority) -> AsyncIterator[Misbehaving]:
    async with Misbehaving(authority.server(LOOPBACK, x509.DNSName("localhost"))) as server:
        yield server


async def exchange(carrier: Carrier, path: bytes, body: bytes = b"") -> bytes:
    reply = await carrier.send(b"POST", path, [], body)
    pieces = []
    try:
        while piece := await reply.read():
            pieces.append(piece)
    finally:
        reply.close()
    return b"".join(pieces)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_trusted_target_is_spoken_to_and_its_connection_kept(
    upstream: Misbehaving, authority: Authority, host: str
) -> None:
    carrier = Carrier(Origin("https", host, upstream.port), tls=authority.trust())
    body = b"x" * 3_000_000
    for _ in range(2):
        assert await exchange(carrier, b"/echo", body) == body
    assert upstream.accepted == 1
    await carrier.close()
    await upstream.all_gone()


async def test_a_certificate_for_another_name_is_refused(authority: Authority) -> None:
    async with Misbehaving(authority.server(x509.DNSName("elsewhere.example"))) as upstream:
        carrier = Carrier(Origin("https", "127.0.0.1", upstream.port), tls=authority.trust())
        with pytest.raises(TlsFailed) as caught:
            await exchange(carrier, b"/ok")
        assert not caught.value.sent
        assert upstream.requests == []
        assert carrier.statistics().open == carrier.statistics().waiting == 0
        await carrier.close()


async def test_a_certificate_of_an_unknown_authority_is_refused(upstream: Misbehaving) -> None:
    carrier = Carrier(Origin("https", "127.0.0.1", upstream.port))  # trusts what the system trusts
    with pytest.raises(TlsFailed) as caught:
        await exchange(carrier, b"/ok")
    assert not caught.value.sent
    assert upstream.requests == []
    await carrier.close()


async def test_a_target_that_does_not_speak_tls_is_refused(authority: Authority) -> None:
    async with Misbehaving() as upstream:

        async def answers_in_clear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(answers_in_clear, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        carrier = Carrier(Origin("https", "127.0.0.1", port), tls=authority.trust())
        with pytest.raises(TlsFailed) as caught:
            await exchange(carrier, b"/ok")
        assert not caught.value.sent
        assert upstream.requests == []
        await carrier.close()
        server.close()
        await server.wait_closed()


async def test_a_handshake_that_never_ends_is_given_up(authority: Authority) -> None:
    gone = asyncio.Event()

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            pass
        writer.close()
        gone.set()

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    carrier = Carrier(Origin("https", "127.0.0.1", port), tls=authority.trust(), timeouts=Timeouts(connect=0.2))
    with pytest.raises(ConnectTimeout) as caught:
        await exchange(carrier, b"/ok")
    assert not caught.value.sent
    await gone.wait()
    await carrier.close()
    server.close()
    await server.wait_closed()


async def test_over_tls_even_a_reply_that_lasts_until_the_close_cannot_be_cut_unseen(
    upstream: Misbehaving, authority: Authority
) -> None:
    async def ends_cleanly(wire: Wire) -> None:
        await wire.body()
        await wire.send(HEAD + b"\r\nhello")
        wire.close()

    async def cut_below_tls(wire: Wire) -> None:
        await wire.body()
        await wire.send(HEAD + b"\r\nhello")
        wire.writer.transport.abort()  # no close_notify

    upstream.on("/clean", ends_cleanly)
    upstream.on("/cut", cut_below_tls)
    carrier = Carrier(Origin("https", "127.0.0.1", upstream.port), tls=authority.trust())
    assert await exchange(carrier, b"/clean") == b"hello"
    with pytest.raises(ReplyBroken):
        await exchange(carrier, b"/cut")
    await carrier.close()


@pytest.mark.parametrize("path", ["/close-at-once", "/reset-at-once", "/close-in-body", "/reset-in-body"])
async def test_a_reply_that_stops_early_is_broken_over_tls_too(
    upstream: Misbehaving, authority: Authority, path: str
) -> None:
    carrier = Carrier(Origin("https", "127.0.0.1", upstream.port), tls=authority.trust())
    with pytest.raises(ReplyBroken):
        await exchange(carrier, path.encode())
    await carrier.close()
    await upstream.all_gone()


async def test_closing_the_carrier_while_it_shakes_hands_leaves_nothing(
    upstream: Misbehaving, authority: Authority
) -> None:
    trust = authority.trust()
    for turns in range(0, 30, 3):
        carrier = Carrier(Origin("https", "127.0.0.1", upstream.port), tls=trust)
        call = asyncio.create_task(exchange(carrier, b"/ok"))
        for _ in range(turns):
            await asyncio.sleep(0)
        await carrier.close()
        assert carrier.statistics().open == carrier.statistics().waiting == 0
        await asyncio.gather(call, return_exceptions=True)
    await upstream.all_gone()


async def test_a_slow_reader_holds_the_target_back_over_tls_too(upstream: Misbehaving, authority: Authority) -> None:
    written = 0

    async def endless(wire: Wire) -> None:
        nonlocal written
        await wire.send(HEAD + b"\r\n")
        while True:
            await wire.send(b"x" * 65536)
            written += 65536

    upstream.on("/endless", endless)
    carrier = Carrier(Origin("https", "127.0.0.1", upstream.port), tls=authority.trust())
    reply = await carrier.send(b"GET", b"/endless", [])
    before = -1
    while written > before:  # until the target stands still
        before = written
        await asyncio.sleep(0.05)
    assert written < 20_000_000
    reply.close()
    await carrier.close()
    await upstream.all_gone()
