"""Reads a search_path as SHOW prints it."""

import re

# A quoted identifier with doubled quotes, or a bare one (scan.l, identifiers; SplitIdentifierString in varlena.c).
_NAME = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^,"]*?))\s*(?:,|$)')


def parse_search_path(text: str, user: str) -> tuple[str, ...]:
    """The schemas in order, `$user` replaced by the user's name; an empty path is ()."""
    schemas = []
    at = 0
    while at < len(text):
        match = _NAME.match(text, at)
        if match is None or match.end() == at:
            break
        quoted, bare = match.groups()
        name = quoted.replace('""', '"') if quoted is not None else bare.lower()
        if name:
            schemas.append(user if name == "$user" else name)
        at = match.end()
    return tuple(schemas)
