"""One gateway: calls that are made again where that is safe, and errors of our own tree.

A call is made again when the connection broke or the gateway (or a proxy before it) is overloaded, if a second time
does no more than once: reads, and calls with an idempotency key. Between tries it waits as long as Retry-After says,
else longer and longer. `patience` bounds all the waiting for one call; then its last error is raised.

The token is sent to the gateway and nowhere else: redirections are not followed, and addresses of the object store are
asked without it. It is not sent in the clear: http:// is for this machine only, unless `insecure` says otherwise.
"""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_any,
    stop_when_event_set,
    wait_exponential,
    wait_random,
)
from tenacity.stop import stop_base

from flows.client.problems import error_of, retry_after
from storage.errors import BadToken, Conflict, DmcpError, ServiceError, TooManyRequests, UsageError

API = "/api/v1"
CONNECT_SECONDS, READ_SECONDS = 10.0, 60.0
PATIENCE_SECONDS = 60.0
LONGEST_PAUSE = 20.0
ERROR_BYTES = 1 << 20
PASSING = (408, 425, 429, 502, 503, 504)
"""Statuses that may be gone a moment later."""

_PAUSES = wait_exponential(multiplier=0.3, max=LONGEST_PAUSE) + wait_random(0, 0.5)

Tell = Callable[[str], None]
Body = Callable[[], Iterable[bytes]]
"""Gives a body from its beginning, each time it is called."""


class Again(Exception):
    """A call failed in a way that may pass: `error` is what to raise when it does not."""

    def __init__(self, error: DmcpError, after: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.after = after


class Connection:
    """Calls to one gateway. Safe to use from several threads.

    Args:
        url: the gateway's address, e.g. https://dmcp.example.
        token: as it was handed out.
        patience: seconds of waiting between tries after which a call that keeps failing is given up.
        insecure: send the token over http:// to another machine as well.
        tell: told why it waits.

    Raises:
        UsageError: the address is none, or not to be trusted with a token.
        BadToken: it can not be one.
    """

    def __init__(
        self, url: str, token: str, patience: float = PATIENCE_SECONDS, insecure: bool = False, tell: Tell | None = None
    ) -> None:
        self.url = checked_address(url, insecure)
        self.patience = patience
        self.tell = tell or (lambda text: None)
        if not token.isascii() or not token.isprintable() or not token or " " in token:
            raise BadToken("That is no token.", "Use the token as it was handed to you: dmcp_...")
        here = _is_loopback(httpx.URL(self.url).host)
        timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
        # Proxies of the environment are for other machines than this one.
        self._http = httpx.Client(
            base_url=self.url + API,
            headers={"Authorization": f"Bearer {token}", "User-Agent": "dmcp-client"},
            timeout=timeout,
            trust_env=not here,
        )
        self._plain = httpx.Client(timeout=timeout, trust_env=not here, headers={"User-Agent": "dmcp-client"})

    def close(self) -> None:
        """End all connections."""
        self._http.close()
        self._plain.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        again: bool | None = None,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        body: Body | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> httpx.Response:
        """One call; its answer, which was read.

        Args:
            method: of HTTP.
            path: below /api/v1.
            again: whether a second time does no more than once; None: only if the method says so.
            params: of the query; None among them are left out.
            json: the body.
            body: the body, instead.
            headers: more of them.
            timeout: seconds without a byte.

        Raises:
            DmcpError: as the gateway says, or ServiceError when it can not be reached.
        """
        safe = method in ("GET", "HEAD", "PUT", "DELETE") if again is None else again

        def attempt() -> httpx.Response:
            with self.answer(
                method,
                path,
                safe=safe,
                params={name: value for name, value in (params or {}).items() if value is not None},
                json=json,
                content=None if body is None else body(),
                headers=dict(headers or {}),
                **({} if timeout is None else {"timeout": httpx.Timeout(timeout, connect=CONNECT_SECONDS)}),
            ) as response:
                response.read()
                return response

        return self.patiently(attempt)

    @contextmanager
    def answer(self, method: str, address: str, *, safe: bool = True, **more: Any) -> Iterator[httpx.Response]:
        """One try of a call, and its answer as a stream.

        Args:
            method: of HTTP.
            address: below /api/v1; or a whole one, which is asked without the token.
            safe: whether it may be made again after anything that may pass.
            more: for httpx.

        Raises:
            Again: it failed and may be made again.
            DmcpError: it failed.
        """
        elsewhere = address.startswith(("http://", "https://"))
        try:
            with (self._plain if elsewhere else self._http).stream(method, address, **more) as response:
                if response.status_code >= 300:
                    raise self._refused(response, safe, elsewhere)
                yield response
        except httpx.RequestError as error:
            unreachable = ServiceError(
                f"The connection to {_origin(address) if elsewhere else self.url} failed ({_said(error)}).",
                "Check the address and the network, then run it again.",
            )
            # A connection that was never made carried no call.
            if safe or isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                raise Again(unreachable) from error
            raise unreachable from error
        except httpx.InvalidURL as error:
            raise ServiceError(f"{self.url} names an address that is none.", "Tell whoever runs it.") from error

    def may_reach(self, address: str) -> bool:
        """Whether an address that the gateway gave can be meant for this machine: not the gateway's own loopback."""
        return _is_loopback(httpx.URL(self.url).host) or not _is_loopback(httpx.URL(address).host)

    def patiently(
        self, attempt: Callable[[], Any], patience: float | None = None, ending: threading.Event | None = None
    ) -> Any:
        """Run `attempt` until it raises no `Again`, waiting in between; then raise the error that it holds.

        Args:
            attempt: what is tried.
            patience: seconds of waiting; None: those of this connection.
            ending: once it is set, there is no other try.
        """
        ending = ending or threading.Event()
        retrying = Retrying(
            retry=retry_if_exception_type(Again),
            wait=_pause,
            stop=stop_any(_Waited(self.patience if patience is None else patience), stop_when_event_set(ending)),
            sleep=sleep_using_event(ending),
            before_sleep=self._tell_why,
            reraise=True,
        )
        try:
            return retrying(attempt)
        except Again as last:
            raise last.error from last.__cause__

    def _tell_why(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, Again):
            self.tell(f"{error.error.what} Trying again in {state.upcoming_sleep:.0f} s")

    def _refused(self, response: httpx.Response, safe: bool, elsewhere: bool) -> Exception:
        body = bytearray()
        for block in response.iter_bytes(1 << 16):
            body += block
            if len(body) > ERROR_BYTES:
                break
        status = response.status_code
        if elsewhere:
            refused = StoreRefused(status, _origin(str(response.url)))
            return Again(refused, retry_after(response.headers)) if safe and status in PASSING else refused
        error = error_of(status, response.headers, bytes(body), self.url)
        # Nothing was done by a call that was one too many, nor by one whose earlier try is under way still.
        if isinstance(error, TooManyRequests) or (safe and (status in PASSING or _under_way(error, response))):
            return Again(error, retry_after(response.headers))
        return error


class StoreRefused(ServiceError):
    """The object store refused a presigned address; `status` says how."""

    def __init__(self, status: int, where: str) -> None:
        super().__init__(f"The object store at {where} answered {status}.", "Run it again.")
        self.status = status

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return type(self), (self.status, "")


class _Waited(stop_base):
    """Whether the waiting between tries would be more than so many seconds; what the tries take is not counted."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, retry_state: RetryCallState) -> bool:
        return retry_state.idle_for + retry_state.upcoming_sleep > self.seconds


def _under_way(error: DmcpError, response: httpx.Response) -> bool:
    """Whether an earlier try of the same call, whose answer got lost, is being worked on."""
    return isinstance(error, Conflict) and "idempotency-key" in response.request.headers


def _pause(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, Again) and error.after is not None:
        return error.after + 0.1
    return _PAUSES(state)


def checked_address(url: str, insecure: bool = False) -> str:
    """A gateway's address, without a slash at its end. Raises UsageError."""
    try:
        parsed = httpx.URL(url.strip())
    except (httpx.InvalidURL, ValueError):
        parsed = httpx.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo or parsed.query or parsed.fragment:
        raise UsageError("That is no address of a gateway.", "As in: https://dmcp.example")
    if parsed.scheme == "http" and not insecure and not _is_loopback(parsed.host):
        raise UsageError(
            f"http://{parsed.host} would carry your token in the clear.", "Use https://, or --insecure if you must."
        )
    return str(parsed).rstrip("/")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _origin(address: str) -> str:
    """Scheme, host and port: a presigned address is a secret, and is never shown."""
    url = httpx.URL(address)
    return f"{url.scheme}://{url.netloc.decode('ascii', 'replace').rpartition('@')[2]}"


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
