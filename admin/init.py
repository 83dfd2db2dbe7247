"""Writes a first configuration from an existing database; passwords are left to the environment."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import ValidationError

from pgshunt.admin.target import Target
from pgshunt.admin.words import counted
from pgshunt.config import Secret, examine
from pgshunt.config.model import Control, ServerTls
from pgshunt.config.problem import Problem as Found
from pgshunt.migration.observed import Observed
from pgshunt.migration.propose import Proposal, Proposed, propose
from pgshunt.migration.servers import connected
from pgshunt.migration.survey import Name, Replica, Survey, read_survey
from pgshunt.routing.table import SHARED, Endpoint

SURVEY_TIMEOUT_S = 60.0
CONTROL_VARIABLE = "PGSHUNT_CONTROL_PASSWORD"
TOKEN_VARIABLE = "PGSHUNT_ADMIN_TOKEN"

TLS_PARAMETERS = {
    "sslmode": "mode",
    "sslrootcert": "ca_file",
    "sslcert": "certificate_file",
    "sslkey": "key_file",
    "sslcrl": "crl_file",
    "channel_binding": "channel_binding",
}

# What YAML reads as a text without quotes. Our own reader takes no scalar for a number or a truth value.
_PLAIN = re.compile(r"[A-Za-z_][\w.-]*")


@dataclass(frozen=True, slots=True)
class Draft:
    """The text of a configuration; `variables`: what must be set in the environment before it is good.

    `control`: pgshunt's own role, and where it is from.
    """

    text: str
    proposal: Proposal
    variables: tuple[str, ...]
    control: tuple[str, str]


def parse_url(url: str) -> tuple[Endpoint, Control]:
    """postgres://user:password@host:port/dbname; PGPASSWORD stands in for the password.

    Raises ValueError that says what is wrong, without the password.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("postgres", "postgresql"):
        raise ValueError("it begins with postgres:// or postgresql://")
    dbname = unquote(parts.path.lstrip("/"))
    if not (parts.username and parts.hostname and dbname):
        raise ValueError(
            "it names a user, a host and a database: postgres://user@host:5432/dbname (/ in a name or a "
            "password is written %2F, @ is %40)"
        )
    tls = _tls(dict(parse_qsl(parts.query, keep_blank_values=True)))
    try:
        port = parts.port or 5432
    except ValueError:
        raise ValueError("its port is not between 0 and 65535") from None
    password = unquote(parts.password) if parts.password else os.environ.get("PGPASSWORD")
    endpoint = Endpoint(SHARED, SHARED, parts.hostname, port, dbname, "primary", tls)
    return endpoint, Control(user=unquote(parts.username), password=Secret(password) if password else None)


def _tls(parameters: dict[str, str]) -> ServerTls:
    """Those of libpq's connection parameters that this configuration has too."""
    if unknown := sorted(set(parameters) - set(TLS_PARAMETERS)):
        raise ValueError(f"it may have {', '.join(TLS_PARAMETERS)}: leave out {', '.join(unknown)}")
    values = {TLS_PARAMETERS[name]: value for name, value in parameters.items()}
    values |= {name: str(Path(value).absolute()) for name, value in values.items() if name.endswith("_file")}
    try:
        tls = ServerTls.model_validate(values)
    except ValidationError as error:
        wrong = error.errors()[0]
        theirs = [name for name, ours in TLS_PARAMETERS.items() if ours in wrong["loc"]]
        raise ValueError(f"{''.join(theirs)}: {wrong['msg']}") from None
    for fault in tls.faults():
        raise ValueError(f"TLS: {fault.message}: {fault.remedy}")
    return tls


def observed_by(source: str) -> Observed:
    """What is told at the address of an admin API, or stands in a file. Raises ValueError, OSError, and what
    the admin client raises.
    """
    if source.startswith(("http://", "https://")):
        return Observed.from_document(Target(None, source, None).client().get("/api/v1/observations"))
    return Observed.from_document(json.loads(Path(source).read_text(encoding="utf-8")))


def draft_from(endpoint: Endpoint, control: Control, observed: Observed | None = None) -> Draft:
    """Looks at the database and proposes; `observed`: by a pgshunt in front of it. Raises ServerError."""
    with connected(endpoint, control, "init", SURVEY_TIMEOUT_S) as link:
        survey = read_survey(link)
    return write_draft(endpoint, control.user, survey, observed)


def write_draft(endpoint: Endpoint, user: str, survey: Survey, observed: Observed | None = None) -> Draft:
    """Pure. `user` is who asked: the control role, where the survey found none."""
    control = survey.control or user
    why = "who asked for this draft" if control == user else "which is in the database already"
    facts = [fact for fact in observed or () if len(fact.writes) > 1]
    together = [frozenset(Name(*table.split(".", 1)) for table in fact.writes) for fact in facts]
    proposal = propose(survey, together)
    roles = sorted({role for service in proposal.services for role in service.users} - {control})
    variables = _variables(control, roles or [user], proposal.services, survey.replicas)
    lines = [*_head(endpoint, (control, why), roles or [user], survey, variables)]
    if proposal.services:
        lines += ["", "# To be made: an empty database for each service.", "databases:"]
        for service in proposal.services:
            host = f'"${{{variables[service.name]}:?the host of {service.name}_db}}"'
            lines += [f"  {service.name}_db:", f"    primary: {{ host: {host} }}"]
        lines += ["", "# A proposal: correct what is wrong.", "services:"]
        for service in proposal.services:
            lines += _service(service, survey)
    if proposal.unowned:
        lines += ["", "# In no service, so they stay on the shared database:"]
        lines += [f"#   {_spelled(name)}" for name in proposal.unowned]
    lines += ["", f"admin: {{ token_env: {TOKEN_VARIABLE} }}", ""]
    names = (*dict.fromkeys(variables.values()), TOKEN_VARIABLE)
    return Draft("\n".join(lines), proposal, names, (control, why))


def save(draft: Draft, path: Path) -> tuple[Found, ...]:
    """Writes the file, which must not exist, and returns what `check` will say when the variables are set.

    Raises FileExistsError and other OSErrors.
    """
    with path.open("x", encoding="utf-8") as file:
        file.write(draft.text)
    names = enumerate(draft.variables, start=1)  # no port twice: it would be the same server
    values = {name: str(number) if name.endswith("_PORT") else "set" for number, name in names}
    return examine(path, values).problems


def document(draft: Draft, path: Path, problems: Iterable[Found]) -> dict[str, Any]:
    """The draft as JSON values, for `-o json`."""
    return {
        "config": str(path),
        "services": [
            {
                "name": service.name,
                "why": service.why,
                "tables": [_spelled(name) for name in service.tables],
                "external_refs": [_spelled(name) for name in service.external_refs],
                "users": list(service.users),
            }
            for service in draft.proposal.services
        ],
        "unowned": [_spelled(name) for name in draft.proposal.unowned],
        "control": dict(zip(("user", "why"), draft.control, strict=True)),
        "variables": list(draft.variables),
        "problems": [str(problem) for problem in problems],
    }


def told(answer: dict[str, Any]) -> str:
    """The same for people."""
    services = answer["services"]
    lines = [
        f"{answer['config']}: {counted(len(services), 'service')}, "
        f"{counted(len(answer['unowned']), 'table')} in none of them"
    ]
    lines += [f"  {one['name']}: {', '.join(one['tables'])} ({one['why']})" for one in services]
    control = answer["control"]
    lines += [f"control.user is {control['user']}, {control['why']}; README tells what this role needs"]
    lines += answer["problems"]
    lines += ["Correct it; set in the environment (a host or port may stand in the file instead):"]
    lines += [f"  {variable}" for variable in answer["variables"]]
    return "\n".join([*lines, f"Then: pgshunt check -c {answer['config']}"])


# -- the parts of the text ------------------------------------------------------------------------------


def _head(
    endpoint: Endpoint, control: tuple[str, str], roles: list[str], survey: Survey, variables: dict[str, str]
) -> Iterator[str]:
    yield "version: 1"
    yield ""
    yield "# Where the services connect from now on."
    yield "listen: { host: 127.0.0.1, port: 6432 }"
    yield ""
    yield "auth:"
    yield "  users: # login roles that may write one of the tables below"
    for role in roles:
        yield f"    - {{ name: {_scalar(role)}, password_env: {variables[f'role {role}']} }}"
    yield ""
    role, why = control
    yield f"# The role of pgshunt itself, {why}; README tells what it needs."
    yield f"control: {{ user: {_scalar(role)}, password_env: {CONTROL_VARIABLE} }}"
    yield ""
    yield "shared:"
    yield f"  dbname: {_scalar(endpoint.dbname)}"
    yield f"  primary: {{ host: {_scalar(endpoint.host)}, port: {endpoint.port} }}"
    if survey.replicas:
        yield "  replicas: # they stream from it now; on which ports they listen it does not know"
        for number, replica in enumerate(survey.replicas):
            calls_itself = re.sub(r"[^\w.-]", "_", replica.name)
            port = f'"${{{variables[f"replica {number}"]}:?the port of {calls_itself} on {replica.host}}}"'
            yield f"    - {{ host: {_scalar(replica.host)}, port: {port} }}"
    yield f"  max_connections: {survey.max_connections}"
    if given := endpoint.tls.model_dump(mode="json", exclude_unset=True):
        yield f"  tls: {{ {', '.join(f'{key}: {_scalar(value)}' for key, value in given.items())} }}"


def _service(service: Proposed, survey: Survey) -> Iterator[str]:
    yield f"  {service.name}: # {service.why}"
    yield f"    database: {service.name}_db"
    yield "    tables:"
    for name in service.tables:
        note = "" if name in survey.replicable else " # has no primary key: cannot be copied as it is"
        yield f"      - {_scalar(_spelled(name))}{note}"
    if service.external_refs:
        yield f"    external_refs: [{', '.join(_scalar(_spelled(name)) for name in service.external_refs)}]"
    if service.users:
        yield f"    users: [{', '.join(map(_scalar, service.users))}]"


def _variables(
    control: str, roles: Iterable[str], services: Iterable[Proposed], replicas: Sequence[Replica]
) -> dict[str, str]:
    """A variable for each password, host and port. The control role's serves it as a client, too."""
    wanted = {"control": CONTROL_VARIABLE}
    for role in roles:
        key = f"role {role}"
        wanted[key] = CONTROL_VARIABLE if role == control else _free(f"{role}_PASSWORD", wanted)
    for service in services:
        wanted[service.name] = _free(f"{service.name}_DB_HOST", wanted)
    for number in range(len(replicas)):
        wanted[f"replica {number}"] = f"SHARED_REPLICA_{number + 1}_PORT"
    return wanted


def _free(wish: str, taken: dict[str, str]) -> str:
    """Two roles may differ in what a variable's name cannot hold."""
    plain = re.sub(r"[^A-Z0-9_]", "_", wish.upper())
    plain = plain if re.match(r"[A-Z_]", plain) else f"_{plain}"
    number, name = 1, plain
    while name in (*taken.values(), TOKEN_VARIABLE):
        number += 1
        name = f"{plain}_{number}"
    return name


def _spelled(name: Name) -> str:
    """As the configuration names tables."""
    parts = [name.table] if name.schema == "public" else [name.schema, name.table]
    return ".".join(part if re.fullmatch(r"[a-z_][a-z0-9_]*", part) else _quoted(part) for part in parts)


def _quoted(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'


def _scalar(text: str) -> str:
    """A YAML scalar of this text, in which nothing is taken for a variable."""
    text = text.replace("${", "$${")
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)
