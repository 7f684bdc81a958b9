"""What the gateway does besides answering: start what is pending, anchor the audit log, remove what nobody fetches."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from flows.sweeper import sweep
from storage.audit import checkpoint_due
from storage.errors import DmcpError, NotFound

if TYPE_CHECKING:
    from flows.gateway.state import Gateway

log = logging.getLogger("dmcp.gateway")

ANCHOR_SECONDS = 60.0
CLEAN_SECONDS = 3600.0


class Background:
    """Threads for the length of a block."""

    def __init__(self, gateway: "Gateway", dispatch: bool) -> None:
        self.gateway = gateway
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self._care, name="gateway-care", daemon=True)]
        self.wake: Callable[[], None] = lambda: None
        if dispatch:
            from flows.dispatcher import Dispatcher

            dispatcher = Dispatcher(gateway.settings)
            self.wake = dispatcher.wake
            self.threads.append(
                threading.Thread(target=dispatcher.run, args=(self.stop,), name="gateway-dispatch", daemon=True)
            )

    def __enter__(self) -> "Background":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.wake()
        for thread in self.threads:
            thread.join(10)

    def _care(self) -> None:
        cleaned = 0.0
        while not self.stop.wait(ANCHOR_SECONDS):
            self._try("anchor the audit log", self._anchor)
            if time.monotonic() - cleaned > CLEAN_SECONDS:
                cleaned = time.monotonic()
                self._try("remove what is over", self._clean)

    def _try(self, what: str, do: Callable[[], None]) -> None:
        try:
            do()
        except DmcpError as error:
            log.error("could not %s: %s", what, error)
        except Exception:
            log.exception("could not %s", what)

    def _anchor(self) -> None:
        settings = self.gateway.settings
        checkpoint_due(
            self.gateway.audit,
            self.gateway.private,
            self.gateway.audit.home,
            settings.audit_every_entries,
            settings.audit_every_seconds,
        )

    def _clean(self) -> None:
        with suppress(NotFound):
            done = sweep(self.gateway.settings, self.gateway.registry, self.gateway.private)
            if done.anything:
                log.info("removed what was over: %s", vars(done))
