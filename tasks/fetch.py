"""Download one file: broken downloads are resumed, the checksum decides.

Bytes go to `NAME.part`, which stays when the process ends; the next call asks the server only for the rest (HTTP
Range). The file takes its name when its MD5 is the published one. Attempts are counted from the last one that brought
something, so a slow line that breaks often still gets there.
"""

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential, wait_random

from storage.errors import DownloadError
from storage.files import Progress

ATTEMPTS = 6
_TIMEOUT = httpx.Timeout(30, connect=15)
_BUSY = {408, 425, 429, 500, 502, 503, 504}


class _Again(Exception):
    """This attempt failed in a way that another may not."""


def fetch(
    address: str, target: Path, md5: str, progress: Progress | None = None, wait: float = 1.0, attempts: int = ATTEMPTS
) -> Path:
    """Make sure that `target` holds the file with this MD5, downloading what is missing of it.

    Args:
        address: http or https address.
        target: the file's final name; its folder is made. A file that is there is checked, and replaced when wrong.
        md5: published MD5 in hex (guards against damage; it is what the publishers of these data sets give).
        progress: told the file's name, bytes so far and bytes in all.
        wait: seconds before the second attempt; doubled each time, 30 at most.
        attempts: how many attempts in a row may bring nothing.

    Raises:
        DownloadError: the server refuses, nothing came in `attempts` attempts, or it is not the published file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _only_one(target):
        if target.is_file() and _md5(target) == md5:
            return target
        part = target.with_name(f"{target.name}.part")
        resumed = part.is_file() and part.stat().st_size > 0
        _download(address, part, progress, wait, attempts)
        if _md5(part) != md5 and resumed:  # what was there before belonged to something else
            part.unlink()
            _download(address, part, progress, wait, attempts)
        if _md5(part) != md5:
            part.unlink()
            raise DownloadError(f"{address} gave a file that is not the published one: its MD5 differs.", _cure(target))
        part.replace(target)
    return target


def _download(address: str, part: Path, progress: Progress | None, wait: float, attempts: int) -> None:
    stalled, before = 0, _size(part)

    def give_up(state: RetryCallState) -> bool:
        nonlocal stalled, before
        stalled = 0 if _size(part) > before else stalled + 1
        before = _size(part)
        return stalled >= attempts

    retrying = Retrying(
        stop=give_up,
        wait=wait_exponential(multiplier=wait, max=30) + wait_random(0, wait),
        retry=retry_if_exception_type((httpx.TransportError, _Again)),
        reraise=True,
    )
    try:
        with httpx.Client(follow_redirects=True, timeout=_TIMEOUT) as client:
            retrying(_attempt, client, address, part, progress)
    except (httpx.HTTPError, httpx.InvalidURL, _Again) as error:
        reason = str(error) or type(error).__name__
        raise DownloadError(f"{address} could not be downloaded: {reason}.", _cure(part)) from error


def _attempt(client: httpx.Client, address: str, part: Path, progress: Progress | None) -> None:
    """Ask for what is missing and append it."""
    have = _size(part)
    headers = {"Accept-Encoding": "identity"}  # the file's own bytes, not a compression of them
    if have:
        headers["Range"] = f"bytes={have}-"
    with client.stream("GET", address, headers=headers) as answer:
        if answer.status_code == 416:  # nothing after what we have: it is whole, or it is not this file
            if answer.headers.get("Content-Range", "") != f"bytes */{have}":
                part.unlink()
                raise _Again("the server has less than was downloaded before")
            return
        if answer.status_code in _BUSY:
            raise _Again(f"the server answered {answer.status_code}")
        answer.raise_for_status()
        if not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = 0  # the server sends all of it
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        with part.open("ab" if have else "wb") as file:
            for block in answer.iter_raw():
                file.write(block)
                have += len(block)
                if progress is not None:
                    progress(part.name.removesuffix(".part"), have, total)


@contextmanager
def _only_one(target: Path) -> Iterator[None]:
    """Two processes that want the same file do not write into one `.part`."""
    with target.with_name(f".{target.name}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _cure(path: Path) -> str:
    return (
        "Try again (what came so far is kept), or put the file into a folder and set DMCP_MIRROR to it."
        if path.suffix == ".part"
        else "Try again later, or put the right file into a folder and set DMCP_MIRROR to it."
    )
