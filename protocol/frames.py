"""Cuts a stream of bytes into frames: the plain-Python twin of the compiled scan."""

FRAME_HEADER = 5


def frame_size(data: bytes, at: int, body_bytes_max: int) -> int:
    """Bytes of the frame at `at`, type byte included; 0: header incomplete; -1: impossible length."""
    if len(data) - at < FRAME_HEADER:
        return 0
    length = int.from_bytes(data[at + 1 : at + 5], "big")
    if length < 4 or length - 4 > body_bytes_max:
        return -1
    return length + 1


def scan(data: bytes, body_bytes_max: int) -> tuple[list[tuple[int, int, int]], int, bool]:
    """Returns ([(type, start, end)...], offset of the rest, False if the rest has an impossible length)."""
    frames: list[tuple[int, int, int]] = []
    at = 0
    while True:
        size = frame_size(data, at, body_bytes_max)
        if size < 0:
            return frames, at, False
        if size == 0 or size > len(data) - at:
            return frames, at, True
        frames.append((data[at], at, at + size))
        at += size
