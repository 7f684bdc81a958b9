"""What boto3 raises, turned into this project's errors: what happened, where, and what to do. Never a secret."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from storage.errors import DmcpError, NotFound, ObjectStoreError, PublicationConflict

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

MISSING = frozenset(("404", "NoSuchKey", "NoSuchBucket", "NotFound"))
NOT_OFFERED = frozenset(("NotImplemented", "MethodNotAllowed", "501", "405"))
_CONFLICT = frozenset(("412", "PreconditionFailed", "ConditionalRequestConflict"))
_REFUSED = frozenset(("401", "403", "AuthorizationHeaderMalformed", "UnsupportedAlgorithm"))  # where not status 403
_LARGEST_SKEW = timedelta(minutes=10)
"""Between two clocks; servers refuse what is signed 15 minutes before or after their own time."""
_CREDENTIALS = (
    "Check the bucket's name, DMCP_S3_ACCESS_KEY and DMCP_S3_SECRET_KEY (or the AWS profile), and that they may do "
    "this there. Who has no credentials reads what its publisher lets everybody read: ask for it."
)


def code(error: "ClientError") -> str:
    """The server's error code, e.g. `NoSuchKey`; for HEAD requests, which have no body, the HTTP status."""
    return str(error.response.get("Error", {}).get("Code", ""))


@contextmanager
def translated(action: str, where: str, endpoint: str, bucket: str) -> Iterator[None]:
    """Run a block of boto3 calls; its errors leave as NotFound, PublicationConflict or ObjectStoreError.

    Args:
        action: what was being done, to follow "could not".
        where: endpoint, bucket and key.
        endpoint: the server's address, for messages that concern all of it.
        bucket: the bucket's name, likewise.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ClientError as error:
        raise _answered(error, action, where, endpoint, bucket) from error
    except Boto3Error as error:  # upload_file wraps the server's answer
        if isinstance(error.__context__, ClientError):
            raise _answered(error.__context__, action, where, endpoint, bucket) from error
        raise ObjectStoreError(f"Could not {action} {where}: {type(error).__name__}.", "Try again.") from error
    except BotoCoreError as error:
        raise _unanswered(error, action, where, endpoint) from error
    except HTTPError as error:  # botocore lets pass what breaks off in the body of an answer
        raise ObjectStoreError(
            f"Could not {action} {where}: the connection to {endpoint} broke ({type(error).__name__}).", "Try again."
        ) from error


def _answered(error: "ClientError", action: str, where: str, endpoint: str, bucket: str) -> DmcpError:
    """The server answered, with an error."""
    reason = code(error)
    if reason == "NoSuchBucket":
        cure = "Check DMCP_S3_PUBLIC_BUCKET or DMCP_S3_PRIVATE_BUCKET; publishing creates a missing bucket."
        return NotFound(f"There is no bucket {bucket} at {endpoint}.", cure)
    if reason in MISSING:
        return NotFound(f"There is no object {where}.", "Check the name, bucket and prefix.")
    if reason in _CONFLICT:
        return PublicationConflict(f"{where} was written by someone else meanwhile.", "Look at it, then try again.")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    off = _clock_off(error)
    if reason == "RequestTimeTooSkewed" or (status in (400, 401, 403) and abs(off) > _LARGEST_SKEW):
        return _wrong_clock(f"{endpoint} refused to {action} {where}", off)
    if reason in _REFUSED or status in (401, 403):
        return ObjectStoreError(f"{endpoint} refused to {action} {where} ({reason}).", _CREDENTIALS)
    message = str(error.response.get("Error", {}).get("Message", ""))[:300]
    cure = "Try again; if it stays, look into the server's log."
    return ObjectStoreError(f"{endpoint} could not {action} {where} ({reason} {message}).", cure)


def _clock_off(error: "ClientError") -> timedelta:
    """By how much this clock is ahead of the server's, as the answer's date says: one to HEAD says nothing else."""
    try:
        theirs = parsedate_to_datetime(error.response["ResponseMetadata"]["HTTPHeaders"]["date"])
        return datetime.now(UTC) - theirs
    except (KeyError, TypeError, ValueError):  # there is none, or it is no time
        return timedelta(0)


def _wrong_clock(what: str, off: timedelta) -> ObjectStoreError:
    minutes = round(abs(off).total_seconds() / 60)
    side = "behind" if off < timedelta(0) else "ahead of"
    differ = f"this machine's clock is {minutes} minutes {side} its own" if minutes else "the clocks differ"
    return ObjectStoreError(f"{what}: {differ}.", "Set this machine's clock right, then run the same command again.")


def _unanswered(error: Exception, action: str, where: str, endpoint: str) -> ObjectStoreError:
    """No answer that could be read."""
    from botocore import exceptions as boto

    unreachable = (boto.EndpointConnectionError, boto.ConnectionError, boto.HTTPClientError)
    if isinstance(error, boto.SSLError):
        cure = "Check the address and its certificate (AWS_CA_BUNDLE names a private authority)."
        return ObjectStoreError(f"No trusted connection to {endpoint}: {type(error).__name__}.", cure)
    if isinstance(error, unreachable):
        return ObjectStoreError(
            f"Could not {action} {where}: {endpoint} does not answer ({type(error).__name__}).",
            "Start the embedded server with `dmcp up`, or check DMCP_S3_ENDPOINT and the network.",
        )
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return ObjectStoreError(f"Could not {action} {where}: credentials are missing.", _CREDENTIALS)
    return ObjectStoreError(
        f"Could not {action} {where}: {type(error).__name__}.", "Check DMCP_S3_ENDPOINT and the settings around it."
    )
