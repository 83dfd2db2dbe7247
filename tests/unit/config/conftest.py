"""A small valid configuration, and a way to examine a changed one."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pgshunt.config import Report, examine

MINIMAL = """\
version: 1
shared: {dbname: monolith, primary: {host: 127.0.0.1}}
control: {user: pgshunt}
auth: {method: trust}
databases:
  auth_db: {primary: {host: 127.0.0.1, port: 5433}}
  audit_db: {primary: {host: 127.0.0.1, port: 5434}}
services:
  auth: {database: auth_db, tables: [users, roles]}
  audit: {database: audit_db, tables: [audit_logs]}
"""

Examine = Callable[..., Report]


@pytest.fixture
def minimal() -> str:
    """A configuration without a problem, to be changed by the test."""
    return MINIMAL


@pytest.fixture
def examined(tmp_path: Path) -> Examine:
    """Writes a text to a file and examines it, in an environment that holds only the given variables."""

    def run(text: str, **environ: str) -> Report:
        path = tmp_path / "pgshunt.yaml"
        path.write_text(text, encoding="utf-8")
        return examine(path, environ)

    return run


@pytest.fixture
def problems(examined: Examine, tmp_path: Path) -> Callable[..., list[str]]:
    """The problems of a text as printed, without the folder in front."""

    def run(text: str, **environ: str) -> list[str]:
        report = examined(text, **environ)
        return [str(problem).replace(f"{tmp_path}/", "") for problem in report.problems]

    return run
