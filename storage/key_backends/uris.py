"""URIs of remote key-encryption keys: `SCHEME://TARGET?OPTION=VALUE&...`, taken apart strictly.

A URI goes into settings, logs and messages, so it holds no secret: a name or password before the host is refused, and
what is refused is never repeated.
"""

from collections.abc import Collection
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from storage.errors import SettingsError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def take_apart(rest: str, options: Collection[str], shape: str) -> tuple[str, dict[str, str]]:
    """What stands between `SCHEME://` and `?`, and the options after it.

    Args:
        rest: the URI after `SCHEME://`.
        options: the names that may be given, each once.
        shape: how such a URI looks, for messages.

    Raises:
        SettingsError: an option is unknown, doubled or empty, or a user's name or password stands in the URI.
    """
    target, _, query = rest.partition("?")
    target = unquote(target)
    if "@" in target or "#" in rest:
        raise unusable("it holds a name, a password or a fragment", shape)
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise unusable("its options can not be read", shape) from None
    given = dict(pairs)
    if len(given) != len(pairs) or not all(given.values()):
        raise unusable("an option is given twice, or is empty", shape)
    if not given.keys() <= set(options):
        raise unusable(f"an option is none of {', '.join(sorted(options))}", shape)
    return target, given


def unusable(why: str, shape: str) -> SettingsError:
    """The error for a URI of the right scheme that can not be used."""
    return SettingsError(f"The URI of the key-encryption key can not be used: {why}.", f"It looks like {shape}")


def http_address(address: str, shape: str) -> SplitResult:
    """An https address, or a plain http one on loopback. Raises SettingsError for all others."""
    try:
        parts = urlsplit(address)
        _ = parts.port  # raises when it is no number
    except ValueError:
        raise unusable("its address can not be read", shape) from None
    if not parts.hostname or parts.username is not None or parts.path not in ("", "/") or parts.query:
        raise unusable("its address is not scheme, host and port", shape)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise unusable("keys travel over https, or over http on loopback only", shape)
    return parts
