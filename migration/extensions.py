"""Names the extensions whose functions need not be read to know what they leave behind in a session."""

from __future__ import annotations

from typing import Final

from pgshunt.routing.effects import Effects

_CONTRIB: Final = """
    adminpack amcheck autoinc bloom bool_plperl btree_gin btree_gist citext cube dict_int dict_xsyn
    earthdistance file_fdw fuzzystrmatch hstore hstore_plperl insert_username intagg intarray isn lo ltree
    moddatetime old_snapshot pageinspect pg_buffercache pg_freespacemap pg_logicalinspect pg_overexplain
    pg_prewarm pg_stat_statements pg_surgery pg_trgm pg_visibility pg_walinspect pgcrypto pgrowlocks
    pgstattuple postgres_fdw refint seg sslinfo tcn tsm_system_rows tsm_system_time unaccent uuid-ossp xml2
"""
_OTHERS: Final = """
    address_standardizer address_standardizer_data_us h3 h3_postgis hll hypopg ip4r pg_bigm pg_cron pg_hashids
    pg_net pg_qualstats pg_repack pg_sphere pg_squeeze pg_stat_kcache pg_stat_monitor pg_uuidv7
    pg_wait_sampling pgaudit pgjwt pgroonga pgrouting pointcloud postgis postgis_raster postgis_sfcgal
    postgis_tiger_geocoder postgis_topology prefix q3c roaringbitmap rum semver tdigest timescaledb topn unit
    vector vectorscale
"""
PLAIN_EXTENSIONS: Final = frozenset(_CONTRIB.split() + _OTHERS.split())
"""Their functions leave nothing behind, but for those in FUNCTIONS_OF_EXTENSIONS."""

FUNCTIONS_OF_EXTENSIONS: Final = {
    ("pg_trgm", "set_limit"): Effects(sets=frozenset({"pg_trgm.similarity_threshold"}), volatile=True),
}
