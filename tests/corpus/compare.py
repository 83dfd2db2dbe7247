"""Keeps, for the sessions of a tap, what the data plane would know, and judges every statement."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass

from corpus.expected import EXPECTED
from corpus.judge import Judgement, Verdict, judge
from corpus.observe import Behind, Observer, Unseen
from corpus.tap import Statement

from pgshunt.routing.classify import classify_bytes
from pgshunt.routing.shape import Shape
from pgshunt.routing.table import Catalogue

HARMLESS = (b"SELECT", b"INSERT", b"UPDATE", b"DELETE", b"EXPLAIN", b"SET ", b"VALUES", b"FETCH", b"SHOW")
"""What begins otherwise may change the catalogue."""
LOSING = (b"DROP", b"ALTER")
"""After them nobody knows any more what lay behind a relation."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A statement whose shape is not exactly what was seen."""

    judgement: Judgement
    script: str
    statement: Statement
    shape: Shape

    @property
    def text(self) -> str:
        return " ".join(self.statement.sql.decode(errors="replace").split())

    @property
    def reason(self) -> str:
        """Why it is no fault that it was judged unsafe; empty where it is one."""
        return EXPECTED.get((self.script, self.text), "")

    def __str__(self) -> str:
        tables = f"reads {sorted(self.shape.reads)}, writes {sorted(self.shape.writes)}"
        names = ", ".join(self.judgement.names)
        verdict = f"{self.judgement.verdict.value}, {self.judgement.cause}"
        return f"{self.script}: {self.text[:300]}\n    {verdict}: {names}\n    named: {tables}"


class Comparison:
    """Counts verdicts; `findings` are the statements that were not equal."""

    def __init__(self) -> None:
        self.script = ""
        self.counts: Counter[Verdict] = Counter()
        self.findings: list[Finding] = []
        self._catalogue = Catalogue()
        self._known = False
        self._behind = Behind({}, frozenset(), {})
        self._behind_known = False
        self._prepared: dict[tuple[int, str], bytes] = {}
        self._temporary: set[int] = set()
        self._lock = threading.Lock()

    def before(self, observer: Observer, sql: bytes) -> None:
        """The catalogue as it is before the statement; it stays as it was while nobody may look."""
        with self._lock:
            begin = sql.lstrip().upper()
            try:
                if not self._known:
                    self._catalogue, self._known = observer.catalogue(), True
                if begin.startswith(LOSING) and not self._behind_known:
                    self._behind, self._behind_known = observer.behind(), True
            except Unseen:
                return
            if not begin.startswith(HARMLESS):
                self._known = self._behind_known = False

    def report(self, observer: Observer, statement: Statement) -> None:
        with self._lock:
            shape = self._shape(statement, observer.pid)
            judgement = self._judge(statement, shape, observer.pid)
            if judgement.verdict is not Verdict.EQUAL and not self._behind_known:
                try:
                    later = observer.behind()
                except Unseen:
                    return
                self._behind = self._behind.joined(later)
                judgement = self._judge(statement, shape, observer.pid)
                self._behind = later
            if {"temp_table", "code_block"} & shape.pins:
                self._temporary.add(observer.pid)
            self.counts[judgement.verdict] += 1
            if judgement.verdict is not Verdict.EQUAL:
                self.findings.append(Finding(judgement, self.script, statement, shape))

    def _judge(self, statement: Statement, shape: Shape, pid: int) -> Judgement:
        temporary = pid in self._temporary
        return judge(statement.sql, shape, statement.observed, self._behind, self._catalogue, temporary)

    def _shape(self, statement: Statement, pid: int) -> Shape:
        """What the statement does; EXECUTE does what was prepared, on the search path as it is now."""
        shape = classify_bytes(statement.sql, statement.search_path, self._catalogue)
        if shape.prepared is not None:
            self._prepared.update({(pid, name): statement.sql for name in shape.prepares})
            return shape.prepared
        if shape.reason == "execute" and shape.local is None and not shape.volatile:
            for name in shape.executes:
                text = self._prepared.get((pid, name), b"")
                return classify_bytes(text, statement.search_path, self._catalogue).prepared or shape
        return shape

    def faults(self) -> list[Finding]:
        """What would be routed wrongly."""
        unsafe = (finding for finding in self.findings if finding.judgement.verdict is Verdict.UNSAFE)
        return [finding for finding in unsafe if not finding.reason]

    def summary(self) -> str:
        """How many statements were compared, how they came out, and why."""
        causes = Counter((finding.judgement.verdict, finding.judgement.cause) for finding in self.findings)
        counts = ", ".join(f"{verdict.value} {self.counts[verdict]}" for verdict in Verdict)
        named = Counter(finding.reason for finding in self.findings if finding.reason)
        lines = [f"compared {self.counts.total()} statements: {counts}, of these faults {len(self.faults())}"]
        lines += [f"{count:7} expected: {reason}" for reason, count in named.most_common()]
        for (verdict, cause), count in causes.most_common():
            lines.append(f"{count:7} {verdict.value}: {cause}")
        return "\n".join(lines)
