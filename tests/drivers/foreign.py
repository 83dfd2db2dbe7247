"""Programmes in other languages: how each is built and run. `make drivers` builds, tests run what is there.

python -P tests/drivers/foreign.py        builds all whose toolchain is on the machine
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent
BUILT = SOURCES.parents[1] / ".make" / "drivers"
BUILD_TIMEOUT_S = 900
RUN_TIMEOUT_S = 100


@dataclass(frozen=True, slots=True)
class Foreign:
    """One driver: its folder beside this file, the toolchain, and commands run in a copy of the folder."""

    name: str
    toolchain: tuple[str, ...]
    build: tuple[tuple[str, ...], ...]
    run: tuple[str, ...]

    @property
    def directory(self) -> Path:
        """Where it is built; sources and results beside each other."""
        return BUILT / self.name

    @property
    def stamp(self) -> Path:
        return self.directory / ".built"

    def fingerprint(self) -> str:
        """Of the sources and the way they are built."""
        digest = hashlib.sha256(repr(self.build).encode())
        for path in sorted((SOURCES / self.name).rglob("*")):
            if path.is_file():
                digest.update(path.read_bytes())
        return digest.hexdigest()

    def missing(self) -> str:
        """Why it cannot run now, "" if it can."""
        lacking = [program for program in self.toolchain if shutil.which(program) is None]
        if lacking:
            return f"no {' and '.join(lacking)} on this machine"
        if not self.stamp.exists():
            return "not built: make drivers"
        if self.stamp.read_text() != self.fingerprint():
            return "its sources have changed: make drivers"
        return ""

    def make(self) -> None:
        """Builds it if there is something to do. Raises CalledProcessError, with what was printed."""
        if not self.missing():
            return
        shutil.copytree(SOURCES / self.name, self.directory, dirs_exist_ok=True)
        for command in self.build:
            subprocess.run(command, cwd=self.directory, check=True, timeout=BUILD_TIMEOUT_S)
        self.stamp.write_text(self.fingerprint())

    def output(self, **environment: str) -> str:
        """What the programme prints. It must end well."""
        done = subprocess.run(
            self.run,
            cwd=self.directory,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=RUN_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


JAVA = (
    "java",
    "-XX:TieredStopAtLevel=1",
    "-XX:+UseSerialGC",
    "-cp",
    "target/classes:target/dependency/*",
    "Main",
)

FOREIGN = (
    Foreign("pgx", ("go",), (("go", "build", "-o", "programme", "."),), ("./programme",)),
    Foreign(
        "tokio_postgres",
        ("cargo",),
        (("cargo", "build", "--quiet", "--release"),),
        ("target/release/pgshunt-drivers-tokio-postgres",),
    ),
    Foreign(
        "node_postgres",
        ("node", "npm"),
        (("npm", "install", "--silent", "--no-audit", "--no-fund", "--no-package-lock"),),
        ("node", "main.js"),
    ),
    *(
        Foreign(
            "pgjdbc",
            ("java", "javac", "mvn"),
            (
                ("mvn", "--quiet", "--batch-mode", "dependency:copy-dependencies"),
                ("javac", "-d", "target/classes", "-cp", "target/dependency/*", "Main.java"),
            ),
            (*JAVA, mode),
        )
        for mode in ("extended", "simple")
    ),
)


def main() -> None:
    failed = []
    for foreign in FOREIGN:
        why = foreign.missing()
        if why.endswith("on this machine"):
            print(f"{foreign.name}: {why}")
            continue
        try:
            foreign.make()
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as failure:
            print(f"{foreign.name}: {failure}", file=sys.stderr)
            failed.append(foreign.name)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
