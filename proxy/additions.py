"""Asks the supervisor to add columns to a table that is being moved, and knows which session waits for it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from pgshunt.routing.additions import read_addition

if TYPE_CHECKING:
    from pgshunt.proxy._relay import Identity, Relay, Session

AS_ANOTHER: Final = frozenset({"role", "session_authorization", "default_transaction_read_only", "options"})
"""What may have a session do less than its user may."""


class Additions:
    """Of one relay."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._waiting: dict[str, Session] = {}

    def ask(
        self,
        session: Session,
        text: bytes,
        identity: Identity,
        settings: Mapping[str, str],
        search_path: Sequence[str],
    ) -> bool:
        """Whether the text adds columns, and the supervisor was asked; the relay hears its answer."""
        named = settings.keys() | {name.decode("ascii", "replace") for name in identity.parameters}
        if AS_ANOTHER & named or self._relay.on_addition is None:
            return False
        addition = read_addition(text, search_path, self._relay.catalogue)
        if addition is None:
            return False
        question = secrets.token_hex(8)  # unlike those of a worker that was here before
        self._waiting[question] = session
        asked = {"type": "add", "question": question, "user": identity.user, "addition": addition.to_dict()}
        self._relay.on_addition(asked)
        return True

    def forget(self, session: Session) -> None:
        """It waits no more: whatever the answer will be, nobody hears it."""
        self._waiting = {asked: waiting for asked, waiting in self._waiting.items() if waiting is not session}

    def answered(self, question: str) -> Session | None:
        """Who has asked it; None if nobody has."""
        return self._waiting.pop(question, None)
