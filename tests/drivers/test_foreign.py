"""Drivers of other languages: what their programmes print is the same directly and proxied."""

from __future__ import annotations

import pytest
from drivers.foreign import FOREIGN, Foreign
from drivers.sides import Run, Sides


@pytest.mark.parametrize("foreign", FOREIGN, ids=lambda foreign: "-".join((foreign.name, *foreign.run[-1:])))
def test_same_as_direct(foreign: Foreign, sides: Sides) -> None:
    if why := foreign.missing():
        pytest.skip(why)

    def programme(run: Run) -> list[str]:
        printed = foreign.output(
            PGHOST=run.host,
            PGPORT=str(run.port),
            PGUSER=run.user,
            PGPASSWORD=run.password,
            PGDATABASE=run.database.dbname,
            PGSSLMODE="disable",
            SESSION=str(run.number),
        )
        return printed.splitlines()

    sides.compare(programme, at_once=3)
