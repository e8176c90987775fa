"""Who is signed in: in memory only, under random ids, for minutes. No password is kept.

A token against forged forms is a keyed hash of the cookie that goes with the form: of the session,
or, before somebody signed in, of a random cookie of its own. So strangers take no memory, and a
token of one session is worth nothing in another.
"""

import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

ID_BYTES = 32
SESSIONS_LIMIT = 10_000  # then the one that was used longest ago ends


@dataclass(slots=True)
class Session:
    """Somebody who is signed in; `check` is the last group of a code that was just shown."""

    name: str
    created: float
    used: float
    check: str = field(default="", repr=False)
    flash: str = ""


class Sessions:
    """The sessions of this process; times are monotonic seconds."""

    def __init__(self, idle: float, age: float, now: Callable[[], float]) -> None:
        self._idle = idle
        self._age = age
        self._now = now
        self._key = secrets.token_bytes(32)
        self._sessions: OrderedDict[bytes, Session] = OrderedDict()

    def begin(self, name: str) -> tuple[str, Session]:
        """A new session under an id that nobody has seen before."""
        session_id, now = new_id(), self._now()
        session = Session(name, now, now)
        self._sessions[_hidden(session_id)] = session
        if len(self._sessions) > SESSIONS_LIMIT:
            self._sessions.popitem(last=False)
        return session_id, session

    def find(self, session_id: str, *, used: bool = True) -> Session | None:
        """The session of this id, unless it is over; it counts as used now where somebody was."""
        session, now = self._sessions.get(_hidden(session_id)), self._now()
        if session is None:
            return None
        if now >= session.used + self._idle or now >= session.created + self._age:
            self.end(session_id)
            return None
        if used:
            session.used = now
            self._sessions.move_to_end(_hidden(session_id))
        return session

    def end(self, session_id: str) -> None:
        """Nobody is signed in under this id any more."""
        self._sessions.pop(_hidden(session_id), None)

    def end_all(self, name: str) -> None:
        """Nobody is signed in by this name any more: what let them in has changed."""
        for hidden, session in list(self._sessions.items()):
            if session.name == name:
                del self._sessions[hidden]

    def token(self, cookie: str) -> str:
        """What a form must bring along that was made for this cookie."""
        return hmac.new(self._key, cookie.encode(), hashlib.sha256).hexdigest()

    def token_fits(self, token: str, cookie: str) -> bool:
        """Whether this token was made for this cookie."""
        return hmac.compare_digest(token.encode(), self.token(cookie).encode())


def new_id() -> str:
    """A random cookie."""
    return secrets.token_urlsafe(ID_BYTES)


def _hidden(session_id: str) -> bytes:
    # Looked up by its digest: how long that takes says nothing about ids that exist.
    return hashlib.sha256(session_id.encode()).digest()
