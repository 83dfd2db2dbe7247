"""Writes a file that nobody but its owner may read: whole, or not at all."""

import os
from pathlib import Path


def write_private(path: Path, content: bytes) -> None:
    """Replaces the file in one step. Raises OSError."""
    draft = path.with_suffix(".draft")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    draft.replace(path)
