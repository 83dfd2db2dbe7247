"""Chooses the operating system user that servers run as: PostgreSQL refuses root, which containers use."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PREFERRED = {"postgres": 0, "nobody": 1}


class CommandFailed(RuntimeError):
    """A PostgreSQL program did not do its work; the message carries what it printed."""


@dataclass(frozen=True, slots=True)
class Account:
    """A user and group to start processes as and to give files to."""

    uid: int
    gid: int

    @classmethod
    def choose(cls) -> Account:
        """The current user; for root an account of PREFERRED, else any other (initdb needs a named one)."""
        if os.geteuid() != 0:
            return cls(os.geteuid(), os.getegid())
        accounts = [entry for entry in pwd.getpwall() if entry.pw_uid != 0]
        if not accounts:
            raise CommandFailed(
                "PostgreSQL refuses root and there is no other account; add one: useradd postgres"
            )
        chosen = min(accounts, key=lambda entry: PREFERRED.get(entry.pw_name, len(PREFERRED)))
        return cls(chosen.pw_uid, chosen.pw_gid)

    def spawn(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Starts a command as this user, in a session of its own: our terminal's Ctrl-C must not reach it."""
        if os.geteuid() == 0:
            options |= {"user": self.uid, "group": self.gid, "extra_groups": []}
        return subprocess.Popen(command, cwd="/", text=True, start_new_session=True, **options)

    def run(self, command: Sequence[str], **environment: str) -> None:
        """Runs a command to its end. Raises CommandFailed with what it printed."""
        complete = os.environ | {"LC_ALL": "C"} | environment
        process = self.spawn(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=complete)
        output, _ = process.communicate()
        if process.returncode != 0:
            raise CommandFailed(f"{command[0]} exited with {process.returncode}: {output.strip()}")

    def own(self, path: Path) -> None:
        if os.geteuid() == 0:
            os.chown(path, self.uid, self.gid)

    def can_run(self, program: str) -> bool:
        try:
            process = self.spawn([program, "--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        except PermissionError:
            return False
        return process.wait() == 0
