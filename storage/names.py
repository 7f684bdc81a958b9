"""Names that people choose and that end up in paths, object keys and messages: checked once, here."""

import re

from storage.errors import UsageError

DATASET_PATTERN = r"[a-z0-9][a-z0-9._-]{0,63}"
USER_PATTERN = r"[a-z0-9][a-z0-9._@+-]{0,127}"
KEY_ID_PATTERN = r"[0-9a-f]{16}"
REQUEST_ID_PATTERN = r"[0-9a-f]{32}"
VERSION_PATTERN = r"[0-9a-f]{16}"


def check_dataset_name(name: str) -> str:
    """The name itself when a data set may be called so.

    A data set's name becomes a folder, a prefix in the bucket and associated data of its keys, so it is kept plain:
    1 to 64 lower-case letters, digits, `-`, `_` and `.`, the first one a letter or a digit (so never `..`).

    Raises:
        UsageError: any other name.
    """
    if not re.fullmatch(DATASET_PATTERN, name):
        raise UsageError(
            f"{_shown(name)} can not name a data set.",
            "Use 1 to 64 lower-case letters, digits, '-', '_' or '.', beginning with a letter or a digit.",
        )
    return name


def check_user_name(name: str) -> str:
    """The name itself when a user may be called so (an e-mail address in lower case may).

    Raises:
        UsageError: any other name.
    """
    if not re.fullmatch(USER_PATTERN, name):
        raise UsageError(
            f"{_shown(name)} can not name a user.",
            "Use up to 128 lower-case letters, digits, '.', '_', '-', '+' or '@', beginning with a letter or a digit.",
        )
    return name


def check_key_id(key_id: str) -> str:
    """The id itself when it has the form of a key id: 16 hexadecimal digits.

    Raises:
        UsageError: anything else.
    """
    if not re.fullmatch(KEY_ID_PATTERN, key_id):
        raise UsageError(f"{_shown(key_id)} is not a key id.", "A key id has 16 digits 0-9a-f: see `dmcp key list`.")
    return key_id


def check_request_id(request_id: str) -> str:
    """The id itself when it has the form of a request id: 32 hexadecimal digits.

    Raises:
        UsageError: anything else.
    """
    if not re.fullmatch(REQUEST_ID_PATTERN, request_id):
        raise UsageError(
            f"{_shown(request_id)} is not a request id.", "A request id has 32 digits 0-9a-f: `dmcp request` prints it."
        )
    return request_id


def _shown(name: str) -> str:
    """A name that failed the check, safe to print and of bounded length."""
    return ascii(name if len(name) <= 80 else name[:77] + "...")
