"""The registry's book of what comes in through the gateway: addresses for uploads, and submissions under way.

An upload's row is made before its address is handed out, with an entry in the audit log, and stays until the address is
worth nothing and the file is gone: users are counted by addresses, not by what lies in the bucket.

    upload = registry.create_upload(user_id, upload_id, size, expires, most=20, most_bytes=..., actor="ann")
    registry.use_upload(upload_id)                       # restored; the address is good for a while yet

A submission is the handing in of one request under an idempotency key, by whichever gateway: one at a time. Who does it
says again and again that it still does; one that was killed is taken for dead after the lease.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.exc import IntegrityError

from storage import audit
from storage.database import utc_now
from storage.errors import NotFound, TooManyRequests
from storage.registry_models import Submission, Upload
from storage.registry_schema import RegistryDatabase
from storage.registry_users import lock_user, user_by_id


class IntakeBook(RegistryDatabase):
    """Uploads and submissions."""

    def create_upload(
        self,
        user_id: int,
        upload_id: str,
        size: int,
        expires: datetime,
        *,
        most: int,
        most_bytes: int,
        actor: str | None = None,
    ) -> Upload:
        """Put an address for an upload on record, before it is handed out.

        Args:
            user_id: whose.
            upload_id: 32 hexadecimal digits.
            size: bytes that it takes.
            expires: until when the address is good.
            most: addresses of one user that may be good, or hold a file that waits.
            most_bytes: bytes of them together.
            actor: who does this, for the audit log; None: the user.

        Raises:
            TooManyRequests: the user has so many already.
        """
        now = utc_now()
        with self.write() as session:
            lock_user(session, user_id)
            user = user_by_id(session, user_id)
            mine = _outstanding(now), Upload.user_id == user_id
            count, taken = session.execute(
                select(func.count(), func.coalesce(func.sum(Upload.bytes), 0)).where(*mine)
            ).one()
            if count >= most or taken + size > most_bytes:
                raise TooManyRequests(
                    f"{count} of your uploads ({taken:,} bytes) wait, or have an address that is still good.",
                    "Start a restoration from them, and ask again when their addresses are over.",
                )
            upload = Upload(id=upload_id, user_id=user_id, bytes=size, created=now, expires=expires)
            session.add(upload)
            session.flush()
            audit.append(
                session,
                actor=actor or user.name,
                action="upload.create",
                subject=user.name,
                details={"upload": upload_id, "bytes": size, "expires": expires},
            )
        return upload

    def get_upload(self, user_id: int, upload_id: str) -> Upload:
        """An upload of this user that was not restored yet. Raises NotFound."""
        mine = Upload.id == upload_id, Upload.user_id == user_id, Upload.used.is_(None)
        found = self.all(select(Upload).where(*mine))
        if not found:
            raise NotFound("There is no such upload.", "Ask for an address and PUT the file to it first.")
        return found[0]

    def use_upload(self, upload_id: str) -> None:
        """Say that a restoration was started from it."""
        with self.write() as session:
            session.execute(update(Upload).where(Upload.id == upload_id).values(used=utc_now()))

    def list_uploads(self, user_id: int | None = None) -> Sequence[Upload]:
        """All uploads on record, oldest first; of one user when named."""
        query = select(Upload).order_by(Upload.created, Upload.id)
        return self.all(query if user_id is None else query.where(Upload.user_id == user_id))

    def uploads_over(self, before: datetime | None) -> Sequence[Upload]:
        """Uploads whose address is worth nothing any more, and that were restored or were made before this moment."""
        wanted = Upload.used.is_not(None) if before is None else or_(Upload.used.is_not(None), Upload.created < before)
        return self.all(select(Upload).where(Upload.expires < utc_now(), wanted))

    def forget_upload(self, upload_id: str) -> None:
        """Take an upload off the record, whose file is gone."""
        with self.write() as session:
            session.execute(delete(Upload).where(Upload.id == upload_id))

    # --- submissions -------------------------------------------------------------------------------------------------

    def begin_submission(self, request_id: str, holder: str, seconds: float) -> bool:
        """Be the one who hands in this request, for so many seconds; whether it worked. Again by the same: go on."""
        now = utc_now()
        until = now + timedelta(seconds=seconds)
        free = or_(Submission.holder == holder, Submission.until < now)
        try:
            with self.write() as session:
                taken: Any = session.execute(
                    update(Submission).where(Submission.id == request_id, free).values(holder=holder, until=until)
                )
                if taken.rowcount:
                    return True
                session.add(Submission(id=request_id, holder=holder, until=until))
        except IntegrityError:  # another holds it
            return False
        return True

    def end_submission(self, request_id: str, holder: str) -> None:
        """Hand it in no longer."""
        with self.write() as session:
            session.execute(delete(Submission).where(Submission.id == request_id, Submission.holder == holder))

    def clear_submissions(self) -> None:
        """Forget those whose gateway was killed."""
        with self.write() as session:
            session.execute(delete(Submission).where(Submission.until < utc_now()))


def _outstanding(now: datetime) -> Any:
    return or_(Upload.expires > now, Upload.used.is_(None))
