"""Shows the story: a live picture of the dashboard in a terminal, plain lines anywhere else."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pgshunt.admin.client import AdminClient, Unreachable
from pgshunt.admin.problem import Problem
from pgshunt.demo.observed import Step

REFRESH_S = 0.25
NUMERIC = ("READS", "PER S", "P95 OLD", "P95 NEW", "LAG")


class Lines:
    """A line for each step, for logs and pipes."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def say(self, text: str) -> None:
        print(f"\n{text}", file=self._out, flush=True)

    def show(self, step: Step) -> None:
        mark = "ok  " if step.ok else "FAIL"
        print(f"  {mark} {step.at_s:7.2f}s  {step.title}: {step.told}", file=self._out, flush=True)

    def progress(self, tables: Mapping[str, Any]) -> None:
        print(f"       {copied(tables)}", file=self._out, flush=True)

    def follow(self, api: AdminClient) -> None:
        """Lines have no live part."""

    def unfollow(self) -> None:
        """Nothing to stop."""


class Picture:
    """The same lines, and below them what GET /api/v1/dashboard says, several times a second."""

    def __init__(self, out: TextIO) -> None:
        self._console = Console(file=out)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._live: Live | None = None

    def say(self, text: str) -> None:
        self._console.print(f"\n[bold]{text}[/bold]")

    def show(self, step: Step) -> None:
        mark = "[green]✓[/green]" if step.ok else "[red]✗[/red]"
        line = Table.grid(padding=(0, 1))
        line.add_row(f"  {mark}", f"[dim]{step.at_s:7.2f}s[/dim]", Text(f"{step.title}: {step.told}"))
        self._console.print(line)

    def progress(self, tables: Mapping[str, Any]) -> None:
        """The live part shows it."""

    def follow(self, api: AdminClient) -> None:
        """Starts the live part."""
        self._stop.clear()
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live.start()
        self._thread = threading.Thread(target=self._refresh, args=(api, self._live), name="view")
        self._thread.start()

    def unfollow(self) -> None:
        """Ends it. May be called when there is none."""
        self._stop.set()
        if self._thread is not None and self._live is not None:
            self._thread.join()
            self._live.stop()
            self._thread = self._live = None

    def _refresh(self, api: AdminClient, live: Live) -> None:
        while not self._stop.wait(REFRESH_S):
            try:
                picture: Group | Text = render(api.get("/api/v1/dashboard"))
            except (Problem, Unreachable) as error:
                picture = Text(str(error), style="dim")
            live.update(picture, refresh=True)


def narrator(out: TextIO) -> Lines | Picture:
    return Picture(out) if out.isatty() else Lines(out)


def render(dashboard: Mapping[str, Any]) -> Group:
    """The dashboard: a table of services, the copy under way, what the guard says of those that moved."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in ("SERVICE", "STAGE", "READS", "PER S", "P95 OLD", "P95 NEW", "LAG", "SHADOW", "GUARD"):
        table.add_column(column, justify="right" if column in NUMERIC else "left", no_wrap=True)
    notes = []
    for service in dashboard["services"]:
        table.add_row(*_row(service))
        if service["stage"] == "syncing":
            notes.append(f"  {copied(service['progress'])}")
        elif service["stage"] != "shared":
            notes += [f"  {each['trigger']}: {each['reason']}" for each in service["triggers"]]
    return Group(Text(), table, *(Text(note, style="dim") for note in notes))


def copied(tables: Mapping[str, Any]) -> str:
    """How far a copy has come, of the progress in a service's document."""
    rows, total = (sum(table[field] for table in tables.values()) for field in ("rows_copied", "rows_total"))
    streaming = sum(table["state"] == "streaming" for table in tables.values())
    return f"{rows} of about {total} rows copied, {streaming} of {len(tables)} tables streaming"


def _row(service: Mapping[str, Any]) -> tuple[str, ...]:
    old, new = service["baseline"], service["candidate"]
    lags = [lag_s for lag_s in service["lag_s"].values() if lag_s is not None]
    return (
        service["name"],
        service["stage"],
        f"{service['reads']} %",
        f"{service['calls']['calls_per_s']:.0f}",
        _milliseconds(old["p95_ms"]),
        _milliseconds(new["p95_ms"]),
        _milliseconds(1000 * max(lags)) if lags else "-",
        _shadow(service["shadow"]),
        "[red]rolled back[/red]" if service["latch"] else "[green]armed[/green]" if service["reads"] else "-",
    )


def _shadow(results: Mapping[str, int]) -> str:
    """Write transactions tried at the own database: how many agreed, and how many did not."""
    bad = results.get("mismatch", 0) + results.get("error", 0)
    return f"{results.get('match', 0)} ok, [red]{bad} not[/red]" if bad else f"{results.get('match', 0)} ok"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g} ms"
