"""Writes names and values into SQL text."""

from collections.abc import Iterable

from pg8000.native import literal

from pgshunt.config.model import ServerTls

__all__ = ["conninfo", "literal", "literals", "quoted", "relation", "relations", "tls_options"]


def quoted(name: str) -> str:
    """An identifier, always in double quotes, so that no keyword list is needed."""
    return '"' + name.replace('"', '""') + '"'


def relation(table: str) -> str:
    """`public.users` → `"public"."users"`.

    `config.names.qualified` made the name: one dot, nothing folded.
    """
    schema, _, name = table.partition(".")
    return f"{quoted(schema)}.{quoted(name)}"


def relations(tables: Iterable[str]) -> str:
    return ", ".join(relation(table) for table in tables)


def literals(values: Iterable[str]) -> str:
    """A text array: for statements that the server must plan with the values, or that take no parameters."""
    return f"ARRAY[{', '.join(literal(value) for value in values)}]::text[]"


def conninfo(**fields: object) -> str:
    """A libpq connection string; its quoting is described in "Keyword/Value Connection Strings" of
    PostgreSQL's manual.
    """
    return " ".join(f"{key}={_conninfo_value(str(value))}" for key, value in fields.items())


def tls_options(tls: ServerTls) -> dict[str, object]:
    """The words of a connection string for what is configured, for a program on this machine.

    The system's authorities are not among them: libpq knows none, but for one mode since version 16.
    """
    files = {
        "sslrootcert": tls.ca_file,
        "sslcrl": tls.crl_file,
        "sslcert": tls.certificate_file,
        "sslkey": tls.key_file,
    }
    return {
        "sslmode": tls.mode,
        "ssl_min_protocol_version": f"TLSv{tls.minimum_version}",
        "channel_binding": tls.channel_binding,
        **{word: file for word, file in files.items() if file is not None},
    }


def _conninfo_value(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
