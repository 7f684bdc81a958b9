"""Every error this project raises on purpose, on one page.

The tree is grouped by who can put the matter right. Each message says what happened and what to do next; the command
line prints it without a traceback and exits with `exit_code`, so that scripts can tell the groups apart:

    2  the call was wrong (typer's own code for usage errors)
    3  the input can not be used, or its path leads nowhere (an image, a data set, a shard, a manifest)
    4  the configuration, a service or the disk is in the way
    5  a key is missing, locked or wrong
    6  the caller is not authorised
    7  something was refused because it is not what it claims to be (altered, foreign, truncated)
    8  not found (a request, a version, a data set, a user)
"""

from collections.abc import Sequence


class DmcpError(Exception):
    """Root of the tree. `what` happened and `cure`, what to do next."""

    exit_code = 1

    def __init__(self, what: str, cure: str = "") -> None:
        super().__init__(f"{what} {cure}".strip())
        self.what = what
        self.cure = cure

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.what, self.cure)


# --- the caller ------------------------------------------------------------------------------------------------------


class UsageError(DmcpError):
    """An argument or an option does not make sense."""

    exit_code = 2


class ParameterError(UsageError):
    """A value in params.yaml, or a parameter of the method, is out of range."""


class RequestCancelled(UsageError):
    """The request was cancelled: nothing of it is served any more."""


class VersionsOverlap(UsageError):
    """What is to be published shows images otherwise that are public already: both together give them away."""


class Conflict(UsageError):
    """Something is in a state in which this can not be done with it."""


# --- the input -------------------------------------------------------------------------------------------------------


class InputError(DmcpError):
    """Something handed in can not be used."""

    exit_code = 3


class NoSuchPath(InputError):
    """A file or folder that was named is not there, or is the one where the other is needed."""


class UnsupportedImage(InputError):
    """Not an 8-bit RGB (or, for sources, greyscale) image with sides of at least 16 pixels."""


class DatasetError(InputError):
    """A data set is not laid out as its loader expects, or its checksum differs."""


class UnusableFiles(DatasetError, UnsupportedImage):
    """Files of a data set can not be its images: `files` has all of them, each with the reason."""

    def __init__(self, what: str, cure: str = "", files: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(what, cure)
        self.files = list(files)

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.what, self.cure, self.files)


class CorruptShard(InputError):
    """A shard can not be read, or its digest is not the manifest's."""


class CorruptManifest(InputError):
    """A manifest is missing, is not valid, or does not describe the files beside it."""


class TooLarge(InputError):
    """More bytes, files or images than are taken."""


class WrongMediaType(InputError):
    """A content type that is not taken here."""


class AuditBroken(InputError):
    """The audit log does not verify: an entry or a checkpoint was altered or removed."""


# --- the surroundings ------------------------------------------------------------------------------------------------


class EnvironmentFault(DmcpError):
    """A setting, a service, the network or the disk is in the way."""

    exit_code = 4


class SettingsError(EnvironmentFault):
    """A setting has a value that can not be used."""


class DiskFault(EnvironmentFault):
    """A file or folder can not be written: the disk is full, read-only or another's (`storage/disk.py`)."""


class DownloadError(EnvironmentFault):
    """A download failed after all retries."""


class ObjectStoreError(EnvironmentFault):
    """The object store is out of reach, refused the credentials, or answered with an error."""


class PublicationConflict(EnvironmentFault):
    """Another publisher moved the channel at the same time."""


class ServiceError(EnvironmentFault):
    """A local service (object store, Prefect, MLflow) did not start or stopped."""


class WorkspaceBusy(EnvironmentFault):
    """Another run holds this workspace."""


class TooManyRequests(EnvironmentFault):
    """More calls, failed logins or uploads at once than are allowed; try again after `retry_after` seconds."""

    retry_after = 60


# --- keys ------------------------------------------------------------------------------------------------------------


class KeyVaultError(DmcpError):
    """The vault can not give a key."""

    exit_code = 5


class VaultLocked(KeyVaultError):
    """What unlocks the vault (passphrase, key file, credentials) is missing or wrong, or the file was altered."""


class WrongKey(VaultLocked):
    """A wrapped key does not open: its key-encryption key, its context or its bytes are not those it was made with."""


class UnknownKey(KeyVaultError):
    """No key with this id (or for this data set) is in the vault."""


# --- authorisation ---------------------------------------------------------------------------------------------------


class NotAuthorised(DmcpError):
    """The caller may not do this."""

    exit_code = 6


class BadToken(NotAuthorised):
    """The token is not known or was withdrawn."""


class NoGrant(NotAuthorised):
    """The user holds no grant for this data set."""


class GrantExpired(NotAuthorised):
    """The user's grant ended."""


class GrantRevoked(NotAuthorised):
    """The user's grant was revoked."""


class GrantNotStarted(NotAuthorised):
    """The user's grant begins later."""


class TermsNotAccepted(NotAuthorised):
    """The user has not accepted the data set's terms of use as they are now."""


class OutOfScope(NotAuthorised):
    """The user's grant does not cover this version, class or image."""


class QuotaExceeded(NotAuthorised):
    """More images than the user's grant allows."""


class Forbidden(NotAuthorised):
    """Known, but neither of the role nor the owner that this takes."""


# --- refused, one by one ---------------------------------------------------------------------------------------------


class Refused(DmcpError):
    """One image (or payload) is not what it claims to be; the rest of the request is still served."""

    exit_code = 7


class NotProtected(Refused):
    """No header: never protected, re-encoded lossily, resized, or the header was damaged."""


class UnsupportedFormat(Refused):
    """The header names a format version or a profile that this release does not know."""


class ForeignImage(Refused):
    """Protected under a key, or for a data set, that this request does not cover."""


class AlteredImage(Refused):
    """The seal does not verify: at least one bit was changed after protection (or the key is wrong)."""


class PayloadMissing(Refused):
    """The payload travels beside the pixels, and neither the file nor a published version holds it."""


# --- not found -------------------------------------------------------------------------------------------------------


class NotFound(DmcpError):
    """No such request, version, data set or user."""

    exit_code = 8


class Removed(NotFound):
    """It was there, and was removed when its time was over."""


# --- what requesters are told ----------------------------------------------------------------------------------------

_FOR_REQUESTERS = (UsageError, UnsupportedImage, TooLarge, WrongMediaType, UnknownKey, NotAuthorised, Refused)


def public_text(error: BaseException) -> str:
    """What a requester may read of an error: its own text if it speaks of the request only.

    Others name the service's paths, buckets and addresses.
    """
    if isinstance(error, _FOR_REQUESTERS):
        return str(error)
    if isinstance(error, KeyVaultError):
        return "The vault of this service does not give the key. Ask the operator, whose log says why."
    if isinstance(error, InputError | NotFound):
        return "Something that the service has stored can not be used. Ask the operator, whose log says what."
    return "Something in the service is in the way. Try again later, or ask the operator, whose log says what."
