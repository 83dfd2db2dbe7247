"""Reads from /proc what a group of processes has used: CPU time and memory."""

import os
from collections import defaultdict
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def family(root: int) -> list[int]:
    """`root` and all its descendants that are alive now."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children[int(fields[1])].append(int(entry.name))
    found = [root]
    for pid in found:
        found += children[pid]
    return found


def cpu_us(pids: list[int]) -> int:
    """User and system time the processes have used since they started, in µs."""
    # Fields 14 and 15 of proc(5), counted from the state (field 3).
    ticks = sum(int(fields[11]) + int(fields[12]) for pid in pids if (fields := _stat(pid)))
    return ticks * 1_000_000 // TICKS_PER_S


def memory_kb(pids: list[int]) -> int:
    """Proportional set size in KB: pages shared between the processes count once in all."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total


def _stat(pid: int) -> list[str]:
    """Fields of /proc/<pid>/stat from the state on; none if the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()
