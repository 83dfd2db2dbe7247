"""Makes the contexts that encrypt connections, by what the configuration says of TLS.

Contexts read their files when they are made. Towards servers they are kept, so that opening a link reads
nothing; `forget` has them made anew, from files that may be others by now.
"""

import ssl
from functools import lru_cache
from typing import Final

from pgshunt.config.model import ListenTls, ServerTls, Tls

ALPN: Final = "postgresql"
"""The name PostgreSQL's protocol is registered under: a server of another protocol refuses it (ALPACA)."""

_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


def accepting(tls: ListenTls) -> ssl.SSLContext:
    """What clients are met with. Raises OSError (ssl.SSLError among it) when a file will not do."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, tls)
    # As PostgreSQL: no resumption, which would keep keys and memory for every session.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    if tls.mode in ("verify-ca", "verify-full"):
        context.verify_mode = ssl.CERT_REQUIRED
    elif tls.ca_file is not None:
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


@lru_cache(maxsize=256)
def connecting(tls: ServerTls) -> ssl.SSLContext | None:
    """What servers are met with; None under `disable`. Raises OSError when a file will not do."""
    if tls.mode == "disable":
        return None
    context = _context(ssl.PROTOCOL_TLS_CLIENT, tls)
    context.check_hostname = tls.mode == "verify-full"
    if tls.mode.startswith("verify"):
        context.verify_mode = ssl.CERT_REQUIRED
        if tls.ca_file is None:
            context.load_default_certs()
    elif tls.ca_file is None:
        context.verify_mode = ssl.CERT_NONE
    return context


def forget() -> None:
    """The next connection to a server reads its certificates again."""
    connecting.cache_clear()


def _context(protocol: int, tls: Tls) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = _VERSIONS[tls.minimum_version]
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols([ALPN])
    if tls.certificate_file is not None and tls.key_file is not None:
        context.load_cert_chain(tls.certificate_file, tls.key_file, _no_passphrase)
    if tls.ca_file is not None:
        context.load_verify_locations(tls.ca_file)
    if tls.crl_file is not None:
        context.load_verify_locations(tls.crl_file)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN  # all of the chain, as PostgreSQL and libpq
    return context


def _no_passphrase() -> str:
    """Asked for an encrypted key: without it OpenSSL would ask the terminal, and wait."""
    raise OSError("the key has a passphrase")
