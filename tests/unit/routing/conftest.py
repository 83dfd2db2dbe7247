"""A catalogue with the relations and the pg_catalog functions that the statements in these tests use."""

from __future__ import annotations

import pytest

from pgshunt.routing.effects import Code
from pgshunt.routing.table import Catalogue

RELATIONS = {
    "public.users": "r",
    "public.roles": "r",
    "public.policies": "r",
    "public.Users": "r",
    'public."odd.name"': "r",
    "public.active_users": "v",
    "public.users_id_seq": "S",
    "audit.users": "r",
    "audit.logs": "r",
}
SAFE_FUNCTIONS = """
    abs age btrim count current_setting currtid date_part extract format generate_series
    has_table_privilege lower
    max now pg_backend_pid pg_get_viewdef pg_typeof position quote_ident quote_literal
    row_number statement_timestamp substring sum
    table_to_xml timezone to_char to_regclass
    transaction_timestamp upper version
"""

SYSTEM_FUNCTIONS = """
    clock_timestamp currval lastval nextval pg_advisory_lock pg_advisory_lock_shared pg_advisory_unlock
    pg_advisory_unlock_all pg_advisory_xact_lock pg_current_wal_lsn pg_is_in_recovery pg_notify random
    set_config setseed setval
"""


@pytest.fixture(scope="session")
def catalogue() -> Catalogue:
    return Catalogue(
        version=1,
        relations=RELATIONS,
        safe_functions=frozenset(SAFE_FUNCTIONS.split()),
        code=Code(system=frozenset(SYSTEM_FUNCTIONS.split())),
    )
