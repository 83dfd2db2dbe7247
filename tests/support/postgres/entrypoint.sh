#!/bin/sh
# Makes a cluster from POSTGRES_PASSWORD and POSTGRES_INITDB_ARGS, then is the server.
set -eu

if [ ! -s "$PGDATA/PG_VERSION" ]; then
    printf '%s\n' "$POSTGRES_PASSWORD" >/tmp/password
    # shellcheck disable=SC2086 — the arguments are several
    initdb --username=postgres --pwfile=/tmp/password --auth=scram-sha-256 ${POSTGRES_INITDB_ARGS:-} >/dev/null
    rm /tmp/password
    echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
    echo 'host replication all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
    echo "listen_addresses = '*'" >>"$PGDATA/postgresql.conf"
fi
exec "$@"
