"""Words what the supervisor knows for people and programs: the JSON behind status, services and dashboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pgshunt.admin.watch import Seen
from pgshunt.admin.words import counted, duration
from pgshunt.migration.detector import Judgement
from pgshunt.migration.observed import Observed
from pgshunt.migration.readiness import Finding, Readiness
from pgshunt.migration.stages import Doing
from pgshunt.routing.table import Service

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Standing:
    """All there is to say about one service at one moment.

    `doing`: what stage syncing stands for now, else empty.
    `latch`: trigger, at, reason, evidence, or None. `lag_s`: by endpoint of its own database, None unknown.
    `progress`: of the copy, by table. `verify`: what verification found since the stage began. `trouble`:
    what holds the move up, empty when nothing does. A copy later than `lag_ms_max`, or whose freshness is
    unknown, takes no reads.
    """

    service: Service
    judgements: Sequence[Judgement]
    seen: Seen
    latch: Mapping[str, Any] | None = None
    lag_s: Mapping[str, float | None] = field(default_factory=dict)
    progress: Mapping[str, Any] = field(default_factory=dict)
    verify: Mapping[str, Any] = field(default_factory=dict)
    trouble: str = ""
    doing: Doing = ""
    lag_ms_max: int = 1000

    @property
    def late(self) -> tuple[str, ...]:
        """The copies, by endpoint, that should take reads and do not, because they are too far behind."""
        if self.service.stage != "reading" or not self.service.reads_percent:
            return ()
        limit_s = self.lag_ms_max / 1000
        return tuple(name for name, lag_s in self.lag_s.items() if lag_s is None or lag_s > limit_s)

    @property
    def attention(self) -> tuple[str, ...]:
        """What somebody should look at although nothing was rolled back."""
        found = [self.trouble] if self.trouble else []
        if self.late:
            where = "; its reads stay at the owner" if len(self.late) == len(self.lag_s) else ""
            behind = ", ".join(f"{name} {_behind(self.lag_s[name])}" for name in self.late)
            limit = duration(self.lag_ms_max / 1000)
            found.append(f"a copy is late: {behind}, limit {limit}{where}")
        return tuple(found)


def service_document(standing: Standing, now_s: float) -> Document:
    """One service: its sentence, how far it is from each trigger, old against new."""
    service, seen = standing.service, standing.seen
    return {
        "name": service.name,
        "sentence": sentence(standing),
        "database": service.database,
        "stage": service.stage,
        "reads": service.reads_percent,
        "shadow_writes": service.shadow_writes,
        "latch": dict(standing.latch) if standing.latch else None,
        "doing": standing.doing,
        "trouble": standing.trouble,
        "attention": list(standing.attention),
        "triggers": [judgement.to_dict() for judgement in standing.judgements],
        "calls": asdict(seen.calls.summary(now_s)),
        "baseline": asdict(seen.baseline.summary(now_s)),
        "candidate": asdict(seen.candidate.summary(now_s)),
        "lag_s": dict(standing.lag_s),
        "shadow": dict(seen.shadow),
        "shadow_mismatches": [
            dict(zip(("shape", "kind", "source", "target"), mismatch, strict=True)) | {"count": count}
            for mismatch, count in seen.mismatches.most_common()
        ],
        "progress": dict(standing.progress),
        "verify": dict(standing.verify),
    }


def sentence(standing: Standing) -> str:
    """Where one service stands, in plain English."""
    service = standing.service
    syncing = {
        "abandoning": f"its copy at {service.database} is being taken down",
        "abandoning_stopped": f"abandoned, but not all of its copy at {service.database} is taken down",
        "copying_stopped": f"the copy to {service.database} has stopped",
    }.get(standing.doing, f"being copied to {service.database}")
    where = {
        "shared": "everything on the shared database",
        "syncing": f"{syncing}, all statements on the shared database",
        "shadowing": f"copied to {service.database}, all statements on the shared database",
        "reading": f"{service.reads_percent} % of reads on {service.database}, writes on the shared database",
        "switched": f"moved to {service.database}, a copy is kept on the shared database",
        "completed": f"moved to {service.database}",
    }[service.stage]
    if standing.late and len(standing.late) == len(standing.lag_s):
        where += ", but the copy is late and reads stay at the owner"
    parts = [f"{service.name}: {where}"]
    if service.stage in ("shadowing", "reading"):
        parts.append(f"shadow writes {'validated' if service.shadow_writes == 'validate' else 'off'}")
        lags = list(standing.lag_s.values())
        if None in lags:
            parts.append("freshness of a copy unknown")
        elif lags:
            behind_s = max(lag_s for lag_s in lags if lag_s is not None)
            parts.append(f"copy at most {duration(behind_s)} behind")
    if standing.latch:
        parts.append(f"rolled back ({standing.latch['trigger']}) and held until re-armed")
    if standing.trouble:
        parts.append(standing.trouble)
    if standing.doing == "copying_stopped":
        parts.append(f"when that is mended `pgshunt begin {service.name}` goes on from there")
    elif standing.doing == "abandoning_stopped":
        parts.append(f"`pgshunt abandon {service.name}` goes on from there")
    return " ".join(", ".join(parts).split())  # servers' errors have lines


def _behind(lag_s: float | None) -> str:
    return "is of unknown freshness" if lag_s is None else f"is {duration(lag_s)} behind"


def summary(documents: Sequence[Mapping[str, Any]], workers_live: int, workers: int, epoch: int) -> str:
    """The first line of `status`."""
    stages = {
        stage: sum(one["stage"] == stage for one in documents)
        for stage in ("reading", "shadowing", "syncing")
    }
    moving = (
        ", ".join(f"{count} {stage}" for stage, count in stages.items() if count) or "none of them moving"
    )
    latched = [one["name"] for one in documents if one["latch"]]
    held = f"; rolled back: {', '.join(latched)}" if latched else ""
    live = f"{workers_live} of {counted(workers, 'worker')} live, " if workers_live else ""  # none: a warning
    return f"{counted(len(documents), 'service')} ({moving}), {live}epoch {epoch}{held}"


def readiness_document(service: Service, readiness: Readiness, observed: Observed) -> Document:
    """What would break behind a switch of the service, most calls first, and what is fine."""
    looks = sum(finding.only_look for finding in readiness.findings)
    found = len(readiness.findings) - looks
    calls = sum(finding.calls_per_minute for finding in readiness.findings)
    would = "nothing found that would break" if not found else f"{counted(found, 'thing')} would break"
    traffic = f", {calls:.1f} calls a minute among them" if calls else ""
    look = f"; {looks} more to look at" if looks else ""
    return {
        "service": service.name,
        "stage": service.stage,
        "sentence": f"{service.name}: {would} behind its switch{traffic}{look}",
        "observed_s": round(observed.observed_s, 1),
        "dropped_facts": observed.dropped_facts,
        "dropped_calls": observed.dropped_calls,
        "findings": [_finding(finding) for finding in readiness.findings],
        "fine": list(readiness.fine),
    }


def _finding(finding: Finding) -> Document:
    return {
        "kind": finding.kind,
        "what": finding.what,
        "tables": list(finding.tables),
        "others": list(finding.others),
        "calls_per_minute": round(finding.calls_per_minute, 2),
        "last_at": finding.last_at,
        "callers": [
            {"user": user, "application_name": name, "calls_per_minute": round(rate, 2)}
            for (user, name), rate in finding.callers
        ],
        "breaks": finding.breaks,
        "remedies": list(finding.remedies),
        "remedy": finding.remedy,
    }
