"""Makes files that nobody but their owner may read, whatever the umask says.

What stands in them says much about those who send statements. One that is there already keeps the mode it
has: somebody may have widened it on purpose.
"""

import os
from pathlib import Path


def private(path: str, flags: int) -> int:
    """An opener for `open`. Raises OSError."""
    return os.open(path, flags, 0o600)


def write_private(path: Path, content: bytes) -> None:
    """Replaces the file in one step: whole, or not at all. Raises OSError."""
    draft = path.with_suffix(".draft")
    with open(draft, "wb", opener=private) as file:
        file.write(content)
    draft.replace(path)
