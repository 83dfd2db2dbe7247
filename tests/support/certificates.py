"""Certificates for tests: an authority, and what it signs."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pgshunt.demo.postgres import PostgresServer, ServerFailed, Servers

DAY = datetime.timedelta(days=1)
PEM = serialization.Encoding.PEM


@dataclass(frozen=True, slots=True)
class Pair:
    """PEM files of a certificate and its key."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates into a directory; `file` is its own."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        self._certificate = self._sign(self._name, self._key.public_key(), is_authority=True)
        self.file = directory / f"{name}.crt"
        self.file.write_bytes(self._certificate.public_bytes(PEM))

    def issue(
        self, file: str, common_name: str, *hosts: str, expired: bool = False, hashed_by: str = "SHA256"
    ) -> Pair:
        """A certificate in `file`.crt, its key in `file`.key; `hosts` are names and addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(
            _name(common_name), key.public_key(), hosts, expired=expired, hashed_by=hashed_by
        )
        pair = Pair(self._directory / f"{file}.crt", self._directory / f"{file}.key")
        pair.certificate.write_bytes(certificate.public_bytes(PEM))
        pair.key.touch(mode=0o600)
        pair.key.write_bytes(
            key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        return pair

    def revoke(self, file: str, *pairs: Pair) -> Path:
        """A list of revoked certificates in `file`.crl; the list is good for a day."""
        now = datetime.datetime.now(datetime.UTC)
        revoked = x509.CertificateRevocationListBuilder().issuer_name(self._name)
        revoked = revoked.last_update(now - DAY).next_update(now + DAY)
        for pair in pairs:
            certificate = x509.load_pem_x509_certificate(pair.certificate.read_bytes())
            entry = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number)
            revoked = revoked.add_revoked_certificate(entry.revocation_date(now - DAY).build())
        listed = self._directory / f"{file}.crl"
        listed.write_bytes(revoked.sign(self._key, hashes.SHA256()).public_bytes(PEM))
        return listed

    def _sign(
        self,
        subject: x509.Name,
        public_key: ec.EllipticCurvePublicKey,
        hosts: tuple[str, ...] = (),
        *,
        is_authority: bool = False,
        expired: bool = False,
        hashed_by: str = "SHA256",
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 3 * DAY)
            .not_valid_after(now - DAY if expired else now + DAY)
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        )
        if hosts:
            names = [_general_name(host) for host in hosts]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, getattr(hashes, hashed_by)())


def start_encrypting(
    servers: Servers, name: str, settings: Mapping[str, str], own: Iterable[Path]
) -> PostgresServer:
    """A server with ssl = on, whose account is given the files `own`; skips where it is built without."""
    for file in own:
        servers.account.own(file)
    try:
        return servers.start(name, {"ssl": "on", **settings})
    except ServerFailed as failure:
        if "SSL is not supported by this build" in str(failure):
            pytest.skip("this PostgreSQL is built without TLS")
        raise


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
