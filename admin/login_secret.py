"""Keeps the secret behind the salts that users who do not exist are shown.

A real user's salt is the same at every attempt, for years. So must be that of one who does not exist, over
restarts too: hence a file beside the state.
"""

import os
import secrets
from pathlib import Path

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
    draft = file.with_suffix(".draft")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as writing:
        writing.write(secret)
    draft.replace(file)
    return secret
