"""The gateway over the built world, a bad network before it and before its object store; flows serve in process."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import uuid4

import uvicorn

from flows.client import Client
from flows.gateway.app import create_app
from flows.restore import serve_request
from storage.errors import DmcpError
from storage.registry import Registry
from storage.server import running_address
from storage.settings import Settings, settings
from tests.flows.tcp_proxy import Proxy, proxy

T = TypeVar("T")


@dataclass
class Served:
    """A gateway, its registry, the proxies before it and before the store, and a way to make users."""

    registry: Registry
    net: Proxy
    store: Proxy
    owner: str = ""
    owner_token: str = ""

    def token(self, dataset: str | None = "sample", role: str = "user") -> str:
        """A new user with a grant; the token."""
        name = f"user-{uuid4().hex[:8]}"
        token = self.registry.add_user(name, role)  # type: ignore[arg-type]
        if dataset:
            self.registry.grant(name, dataset)
        return token

    def client(self, token: str | None = None, **more: Any) -> Client:
        """A client of a new user."""
        return Client(self.net.url, token or self.token(), **{"patience": 20.0, **more})

    def heal(self) -> None:
        """A network without faults, and no memory of what was."""
        for bad in (self.net, self.store):
            bad.down, bad.drop, bad.stall, bad.rate, bad.answered = False, b"", b"", 0.0, 0
            bad.faults.clear()
            bad.calls.clear()

    def serving(self, work: Callable[[], T]) -> T:
        """Do some work in a thread; meanwhile this one restores whatever is requested, by the real flow."""
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(work)
            while not future.done():
                for request in self.registry.list_requests(state="pending"):
                    with suppress(DmcpError):  # the registry says why
                        serve_request(request.id)
                time.sleep(0.05)
            return future.result()


@contextmanager
def gateway(**more: Any) -> Iterator[Served]:
    """The gateway of the current settings; its object store is reached through a proxy."""
    address = running_address(settings().home)
    port = int(address.endpoint.rpartition(":")[2])
    with proxy(port) as store:
        conf = settings().model_copy(
            update={
                "s3_endpoint": store.url,
                "s3_access_key": address.access_key,
                "s3_secret_key": Settings(s3_secret_key=address.secret_key).s3_secret_key,
                "gateway_rate": "100000/second",
                "gateway_login_rate": "100000/second",
                **more,
            }
        )
        app = create_app(conf, dispatch=False)
        server = uvicorn.Server(
            uvicorn.Config(app, port=0, log_config=None, access_log=False, timeout_graceful_shutdown=2)
        )
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the gateway did not start"
            time.sleep(0.01)
        with proxy(server.servers[0].sockets[0].getsockname()[1]) as net:
            site = Served(app.state.gateway.registry, net, store)
            site.owner_token = site.token(None, "owner")
            with site.client(site.owner_token) as owner:
                site.owner = owner.me().name
            yield site
        server.should_exit = True
        thread.join(60)
