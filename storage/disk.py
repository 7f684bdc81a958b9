"""A disk that is in the way (full, read-only, another's) as an error that names the folder and the cure.

with writing(folder):
    ...                    # an OSError that says so leaves as DiskFault; any other as it is
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.errors import DiskFault

FULL = {
    errno.ENOSPC: ("The disk is full", "Free some space there and run the same command again: what is done is kept."),
    errno.EDQUOT: ("The disk is full", "Free some space there and run the same command again."),
    errno.EFBIG: ("A file may not become larger", "Raise the limit (ulimit -f) and run the same command again."),
}
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def disk_fault(error: OSError, place: Path | None = None) -> DiskFault | None:
    """What a failed write says of the disk; None: it failed for another reason.

    Args:
        error: names the file that it is about, or not: then `place` does.
        place: a file or a folder.
    """
    named = error.filename if isinstance(error.filename, str) else place
    if error.errno in FULL:
        what, cure = FULL[error.errno]
        return DiskFault(f"{what} while writing {named}." if named else f"{what}.", cure)
    if error.errno in _REFUSED:
        return DiskFault(
            f"{named or 'A file'} can not be {'written' if error.errno == errno.EROFS else 'read or written'}: "
            f"{error.strerror}.",
            "Check its owner, its mode and how its disk is mounted, or name another place; then run it again.",
        )
    return None


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Run a block that writes to a file or a folder.

    Raises:
        DiskFault: the disk is in the way.
    """
    try:
        yield
    except OSError as error:
        fault = disk_fault(error, place)
        if fault is None:
            raise
        raise fault from error
