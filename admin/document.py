"""Words what the supervisor knows for people and programs: the JSON behind status, services and dashboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pgshunt.admin.watch import Seen
from pgshunt.migration.detector import Judgement
from pgshunt.routing.table import Service

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Standing:
    """All there is to say about one service at one moment.

    `latch`: trigger, at, reason, evidence, or None. `lag_s`: by endpoint of its own database, None unknown.
    `progress`: of the copy, by table. `verify`: what verification found since the stage began. `trouble`:
    what holds the move up, empty when nothing does.
    """

    service: Service
    judgements: Sequence[Judgement]
    seen: Seen
    latch: Mapping[str, Any] | None = None
    lag_s: Mapping[str, float | None] = field(default_factory=dict)
    progress: Mapping[str, Any] = field(default_factory=dict)
    verify: Mapping[str, Any] = field(default_factory=dict)
    trouble: str = ""


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
        "trouble": standing.trouble,
        "triggers": [judgement.to_dict() for judgement in standing.judgements],
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
    where = {
        "shared": "everything on the shared database",
        "syncing": f"being copied to {service.database}, all statements on the shared database",
        "shadowing": f"copied to {service.database}, all statements on the shared database",
        "reading": f"{service.reads_percent} % of reads on {service.database}, writes on the shared database",
    }[service.stage]
    parts = [f"{service.name}: {where}"]
    if service.stage in ("shadowing", "reading"):
        parts.append(f"shadow writes {'validated' if service.shadow_writes == 'validate' else 'off'}")
        lags = list(standing.lag_s.values())
        if None in lags:
            parts.append("freshness of a copy unknown")
        elif lags:
            parts.append(f"copy at most {max(lag_s for lag_s in lags if lag_s is not None):.1f} s behind")
    if standing.latch:
        parts.append(f"rolled back ({standing.latch['trigger']}) and held until re-armed")
    if standing.trouble:
        parts.append(standing.trouble)
    return ", ".join(parts)


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
    return (
        f"{len(documents)} services ({moving}), {workers_live} of {workers} workers live, epoch {epoch}{held}"
    )
