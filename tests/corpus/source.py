"""Obtains the regression scripts of the PostgreSQL that is installed: Debian's source package, by apt-get."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SOURCES = Path("/etc/apt/sources.list.d")
PACKAGE = "postgresql-15"


def obtain(directory: Path) -> Path:
    """src/test/regress, unpacked under `directory`; ends the programme where there is no way to it."""
    sources = directory / "sources"
    for part in (sources, directory / "lists" / "partial"):
        part.mkdir(parents=True)
    for file in SOURCES.glob("*.sources"):
        (sources / file.name).write_text(re.sub(r"(?m)^Types:.*$", "Types: deb-src", file.read_text()))
    options = {
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": str(sources),
        "Dir::State::lists": str(directory / "lists"),
        "APT::Sandbox::User": "root",
    }
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
    try:
        version = subprocess.check_output(["dpkg-query", "-Wf", "${Version}", PACKAGE], text=True)
        subprocess.run([*apt, "update"], check=True)
        subprocess.run([*apt, "source", "--download-only", f"{PACKAGE}={version}"], cwd=directory, check=True)
        archive = next(directory.glob("*.orig.tar.*"))
        unpack = ["tar", "xf", str(archive), "--wildcards", "*/src/test/regress/*"]
        subprocess.run(unpack, cwd=directory, check=True)
    except (OSError, subprocess.CalledProcessError, StopIteration) as error:
        sys.exit(f"no source of {PACKAGE} by apt-get ({error}): make corpus ARGS=/path/to/src/test/regress")
    # The server, which is another user, reads the data files.
    subprocess.run(["chmod", "-R", "a+rX", str(directory)], check=True)
    return next(directory.glob("*/src/test/regress"))
