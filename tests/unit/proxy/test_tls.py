"""Channel binding data is what OpenSSL's users agree on, for every kind of signature."""

from __future__ import annotations

import datetime
import hashlib
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa
from support.certificates import DAY, Authority

from pgshunt.proxy.tls import end_point, first_certificate


@pytest.mark.parametrize(
    ("signed_by", "hashed_by"), [("SHA256", "sha256"), ("SHA384", "sha384"), ("SHA512", "sha512")]
)
def test_the_hash_is_that_of_the_signature(tmp_path: Path, signed_by: str, hashed_by: str) -> None:
    pair = Authority(tmp_path).issue("server", "server", hashed_by=signed_by)
    certificate = first_certificate(pair.certificate.read_text())
    assert end_point(certificate) == hashlib.new(hashed_by, certificate).digest()


def signed(key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey, *, pss: bool = False) -> bytes:
    name = x509.Name([])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(1)
    builder = builder.public_key(key.public_key()).not_valid_before(now).not_valid_after(now + DAY)
    if isinstance(key, ed25519.Ed25519PrivateKey):
        certificate = builder.sign(key, None)
    elif pss:
        scheme = padding.PSS(padding.MGF1(hashes.SHA384()), padding.PSS.DIGEST_LENGTH)
        certificate = builder.sign(key, hashes.SHA384(), rsa_padding=scheme)
    else:
        certificate = builder.sign(key, hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.DER)


def test_rsa_and_its_pss() -> None:
    key = rsa.generate_private_key(65537, 2048)
    plain, pss = signed(key), signed(key, pss=True)
    assert end_point(plain) == hashlib.sha256(plain).digest()
    assert end_point(pss) == hashlib.sha384(pss).digest()


def test_a_signature_without_a_hash_binds_nothing() -> None:
    assert end_point(signed(ed25519.Ed25519PrivateKey.generate())) is None


def test_the_own_certificate_is_the_first(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    own = authority.issue("server", "server").certificate.read_text()
    chain = f"subject: whatever\n{own}\n{authority.file.read_text()}"
    assert first_certificate(chain) == first_certificate(own)
