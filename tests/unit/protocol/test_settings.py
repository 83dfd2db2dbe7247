"""What a client asks for at startup is read as PostgreSQL reads it."""

from __future__ import annotations

import psycopg
import pytest
from support.fixtures import Server

from pgshunt.protocol.errors import PgError
from pgshunt.protocol.settings import session_settings


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", {}),
        ("  ", {}),
        ("-c work_mem=1MB", {"work_mem": "1MB"}),
        ("-cwork_mem=1MB", {"work_mem": "1MB"}),
        ("--work-mem=1MB", {"work_mem": "1MB"}),
        ("\t-c  work_mem=1MB\n --geqo=off ", {"work_mem": "1MB", "geqo": "off"}),
        ("-c work_mem=1MB -c work_mem=2MB", {"work_mem": "2MB"}),
        (r"-c search_path=a,\ b", {"search_path": "a, b"}),
        (r"-c app.path=back\\slash\ ", {"app.path": "back\\slash "}),
        ("-c app.empty=", {"app.empty": ""}),
        ("-c app.sum=1=1", {"app.sum": "1=1"}),
    ],
)
def test_the_command_line_is_read_as_postgresql_reads_it(
    options: str, expected: dict[str, str], postgres: Server
) -> None:
    wanted = {name.encode(): value.encode() for name, value in expected.items()}
    assert session_settings({b"options": options.encode()}) == wanted
    with psycopg.connect(postgres.dsn(), options=options) as connection:
        for name, value in expected.items():
            assert connection.execute("SELECT current_setting(%s)", [name]).fetchone() == (value,)


def test_parameters_by_name_come_last_and_win() -> None:
    given = {b"work_mem": b"3MB", b"options": b"-c work_mem=1MB -c geqo=off", b"TimeZone": b"UTC"}
    assert list(session_settings(given).items()) == [
        (b"work_mem", b"3MB"),
        (b"geqo", b"off"),
        (b"TimeZone", b"UTC"),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (b"geqo=off", "invalid command-line argument for server process: geqo=off"),
        (b"-", "invalid command-line argument for server process: -"),
        (b"-c", "-c  requires a value"),
        (b"-c geqo", "-c geqo requires a value"),
        (b"--geqo", "--geqo requires a value"),
    ],
)
def test_another_command_line_is_refused(options: bytes, message: str) -> None:
    with pytest.raises(PgError) as refusal:
        session_settings({b"options": options})
    assert (refusal.value.severity, refusal.value.sqlstate) == ("FATAL", "42601")
    assert refusal.value.message == message
