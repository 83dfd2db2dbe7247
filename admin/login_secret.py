"""Keeps the secret behind the salts that users who do not exist are shown.

A real user's salt is the same at every attempt, for years. So must be that of one who does not exist, over
restarts too: hence a file beside the state.
"""

import secrets
from pathlib import Path

from pgshunt.migration.private_file import write_private

SECRET_BYTES = 32


def login_secret(file: Path) -> bytes:
    """The secret in `file`, made when there is none. Raises OSError."""
    try:
        secret = file.read_bytes()
        if len(secret) == SECRET_BYTES:
            return secret
    except FileNotFoundError:
        pass
    secret = secrets.token_bytes(SECRET_BYTES)
    write_private(file, secret)
    return secret
