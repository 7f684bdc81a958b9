"""Limits that protect the gateway itself: calls per user, failed logins per address.

Rates are those of the library `limits`, kept in memory unless DMCP_GATEWAY_RATE_STORAGE names a Redis server that
several gateways share. A token that was good before is not held up by others' failures from the same address.
"""

import hashlib
import threading
import time
from collections import OrderedDict

from limits import RateLimitItem, parse
from limits.storage import storage_from_string
from limits.strategies import MovingWindowRateLimiter

from storage.errors import SettingsError, TooManyRequests
from storage.settings import Settings

REMEMBERED = 4096
"""Tokens that are known to have been good."""


class Limiter:
    """Counts calls and failed logins. Safe to use from several threads.

    Raises:
        SettingsError: a rate or the storage can not be used.
    """

    def __init__(self, settings: Settings) -> None:
        try:
            self._calls: RateLimitItem = parse(settings.gateway_rate)
            self._failures: RateLimitItem = parse(settings.gateway_login_rate)
            self._rates = MovingWindowRateLimiter(storage_from_string(settings.gateway_rate_storage))
        except Exception as error:
            raise SettingsError(
                f"The gateway's rate limits can not be used: {type(error).__name__}.",
                "Write rates like 600/minute, and the storage like memory:// or redis://host:6379.",
            ) from error
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._lock = threading.Lock()

    def check_address(self, address: str, token: str) -> None:
        """Before a token is looked up. Raises TooManyRequests after too many failures from this address."""
        if _digest(token) in self._known or self._rates.test(self._failures, "failed", address):
            return
        raise self._refusal(self._failures, "failed", address, "Too many failed logins from this address.")

    def failed(self, address: str) -> None:
        """A token was not good."""
        self._rates.hit(self._failures, "failed", address)

    def count(self, user_id: int) -> None:
        """A call by a user, with whichever token or session. Raises TooManyRequests when they make too many."""
        if not self._rates.hit(self._calls, "calls", str(user_id)):
            raise self._refusal(self._calls, "calls", str(user_id), f"More calls than {self._calls}.")

    def remember(self, token: str) -> None:
        """A token was good."""
        digest = _digest(token)
        with self._lock:
            self._known[digest] = None
            self._known.move_to_end(digest)
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)

    def _refusal(self, rate: RateLimitItem, *key: str) -> TooManyRequests:
        *identifiers, what = key
        reset = self._rates.get_window_stats(rate, *identifiers).reset_time
        error = TooManyRequests(what, "Wait a little; ask less often, or follow progress by events.")
        error.retry_after = max(1, int(reset - time.time()) + 1)
        return error


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()
