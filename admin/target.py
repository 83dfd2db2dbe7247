"""Finds the running pgshunt that a command is about: its admin API's address and token."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pgshunt.admin.client import AdminClient
from pgshunt.config import Admin, Secret, load_admin

DEFAULT_URL = "http://127.0.0.1:6433"


@dataclass(frozen=True, slots=True)
class Target:
    """What the options of a command say of it."""

    config: Path | None
    url: str | None
    token_file: Path | None

    def client(self) -> AdminClient:
        """Explicit options win over the environment, that over the configuration."""
        variable = os.environ.get("PGSHUNT_ADMIN_TOKEN")
        needs_token = not (self.token_file or variable)
        admin = None
        if self.config and (needs_token or not self.url):
            admin = load_admin(self.config, with_token=needs_token)
        url = self.url or (_url_of(admin) if admin else DEFAULT_URL)
        token, source = admin.token if admin else None, f"admin of {self.config}"
        if variable:
            token, source = _first_line(variable), "PGSHUNT_ADMIN_TOKEN"
        if self.token_file:
            text = self.token_file.read_text(encoding="utf-8", errors="replace")
            token, source = _first_line(text), str(self.token_file)
        return AdminClient(url, token, source)


def _first_line(text: str) -> Secret:
    """What puts secrets into files and variables likes to end them with a line feed."""
    return Secret(text.partition("\n")[0].strip())


def _url_of(admin: Admin) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(admin.host, admin.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{admin.port}"
