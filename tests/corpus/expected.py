"""Names the statements of the regression scripts that are judged unsafe and are not, each with its reason."""

from __future__ import annotations

from typing import Final

OF_A_ROW: Final = (
    "row.f is f(row): the catalogue that is compared with has no code; with it the function is followed "
    "(tests/integration/test_code.py: t.shown)"
)
JUST_MADE: Final = (
    "made in the transaction that is still open, which the catalogue's reader cannot see into: all of it "
    "stays where that transaction is, at the owner"
)
EXECUTED: Final = (
    "runs at the owner, as a write of the temporary table it makes; what was prepared the session knows, "
    "and not to this text"
)

EXPECTED: Final = {
    ("misc", "SELECT p.name, name(p.hobbies) FROM ONLY person p;"): OF_A_ROW,
    ("misc", "SELECT p.name, name(p.hobbies) FROM person* p;"): OF_A_ROW,
    (
        "misc",
        "SELECT DISTINCT hobbies_r.name, name(hobbies_r.equipment) FROM hobbies_r ORDER BY 1,2;",
    ): OF_A_ROW,
    ("misc", "SELECT hobbies_r.name, (hobbies_r.equipment).name FROM hobbies_r;"): OF_A_ROW,
    ("misc", "SELECT (p.hobbies).equipment.name, p.name, name(p.hobbies) FROM person* p;"): OF_A_ROW,
    ("misc", "SELECT (p.hobbies).equipment.name, name(p.hobbies), p.name FROM ONLY person p;"): OF_A_ROW,
    ("vacuum", "INSERT INTO past_parted VALUES (1),(1);"): JUST_MADE,
    ("vacuum", "ANALYZE past_parted;"): JUST_MADE,
    ("copy2", "COPY instead_of_insert_tbl_view_2 FROM stdin;"): JUST_MADE,
    ("prepare", "CREATE TEMPORARY TABLE q5_prep_results AS EXECUTE q5(200, 'DTAAAA');"): EXECUTED,
    ("prepare", "CREATE TEMPORARY TABLE q5_prep_nodata AS EXECUTE q5(200, 'DTAAAA') WITH NO DATA;"): EXECUTED,
}
"""By script and text, its space made single."""
