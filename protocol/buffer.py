"""Holds what has arrived of a login and cuts messages off it."""

from __future__ import annotations


class ReceiveBuffer(bytearray):
    """Bytes received and not read yet; the reader checks a length before it waits for what is promised."""

    def kind(self) -> int | None:
        """Type byte of the next message."""
        return self[0] if self else None

    def body_length(self, at: int) -> int | None:
        """Bytes that follow the length word at this offset; below zero if the word is nonsense."""
        return int.from_bytes(self[at : at + 4]) - 4 if len(self) >= at + 4 else None

    def take(self, start: int, length: int) -> bytes | None:
        """The `length` bytes from `start`, removed with what stands before them; None until all are here."""
        end = start + length
        if len(self) < end:
            return None
        taken = bytes(self[start:end])
        del self[:end]
        return taken
