"""A pytest plugin for other projects' suites: writes each test's outcome to the file OUTCOMES names, as JSON.

It is loaded by name into their environment, so it imports nothing but pytest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

WHY_CHARACTERS_MAX = 300

_outcomes: dict[str, tuple[str, str]] = {}  # test -> outcome, reason


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Of a test's set-up, call and tear-down the first failure counts, then whatever is not "passed"."""
    outcome: str = report.outcome
    if hasattr(report, "wasxfail"):
        outcome = "xfailed" if report.skipped else "xpassed"
    before, _ = _outcomes.get(report.nodeid, ("passed", ""))
    if before == "failed" or (before != "passed" and outcome != "failed"):
        return
    crash = getattr(report.longrepr, "reprcrash", None)
    _outcomes[report.nodeid] = (outcome, str(getattr(crash, "message", ""))[:WHY_CHARACTERS_MAX])


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish() -> Iterator[None]:
    yield
    Path(os.environ["OUTCOMES"]).write_text(json.dumps(_outcomes))
