"""The registry's book of the pages' sessions: a cookie is worth something as long as its row is here.

    secret = registry.begin_session(token.id, 12 * 3600)     # for the cookie; only its SHA-256 is kept
    token = registry.session_token(secret)                   # None: logged out, over, or never begun
    registry.end_session(secret)                             # logging out: every copy of the cookie is worth nothing

A session also ends with the token that it began with: who asks looks at the token as well.
"""

import hashlib
import secrets
from datetime import timedelta

from sqlalchemy import delete, select

from storage.database import utc_now
from storage.registry_models import PageSession, Token
from storage.registry_schema import RegistryDatabase


class SessionBook(RegistryDatabase):
    """Sessions of the pages."""

    def begin_session(self, token_id: int, seconds: float) -> str:
        """Begin a session with a token; the secret that names it. Sessions that are over are forgotten."""
        secret, now = secrets.token_urlsafe(32), utc_now()
        with self.write() as session:
            session.execute(delete(PageSession).where(PageSession.expires <= now))
            session.add(
                PageSession(
                    id=_digest(secret), token_id=token_id, created=now, expires=now + timedelta(seconds=seconds)
                )
            )
        return secret

    def session_token(self, secret: str) -> Token | None:
        """The token that a session began with, with its user; None: there is no such session (any more)."""
        query = select(Token).join(PageSession, PageSession.token_id == Token.id)
        found = self.all(query.where(PageSession.id == _digest(secret), PageSession.expires > utc_now()))
        return found[0] if found else None

    def end_session(self, secret: str) -> None:
        """End a session; done again, nothing changes."""
        with self.write() as session:
            session.execute(delete(PageSession).where(PageSession.id == _digest(secret)))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()
