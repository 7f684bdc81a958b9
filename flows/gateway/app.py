"""The application: `create_app(settings)` puts routers, errors and middleware together; its lifespan opens and closes.

When it starts it sees that the object store answers (and starts the embedded one where none is named), opens the
registry, removes what a killed gateway left behind, and begins to dispatch: requests that are pending, from before
too, are handed to Prefect (`flows/dispatcher.py`), in a thread of its own.
"""

import asyncio
import importlib
import importlib.util
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from types import ModuleType

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from flows.gateway import (
    access,
    datasets,
    errors,
    events,
    health,
    me,
    openapi,
    operator,
    owner,
    restorations,
    results,
    uploads,
)
from flows.gateway.background import Background
from flows.gateway.events import Progress
from flows.gateway.frame import Frame, Observe
from flows.gateway.limits import Limiter
from flows.gateway.state import Gateway
from flows.gateway.workspace import Workspace
from storage.audit import open_audit_log
from storage.files import make_private
from storage.objects import open_store
from storage.registry import open_registry
from storage.settings import Settings

API = "/api/v1"
ROUTERS = (me, datasets, access, restorations, uploads, events, results, owner, operator)
log = logging.getLogger("dmcp.gateway")


def create_app(settings: Settings, *, dispatch: bool = True) -> FastAPI:
    """The gateway of these settings. Nothing is opened before it starts.

    Args:
        settings: name registry, object store, limits.
        dispatch: start what is pending. False: another process does.

    Raises:
        SettingsError: the rate limits can not be used.
    """
    limiter = Limiter(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            closing = await asyncio.to_thread(_open, app, settings, limiter, dispatch)
            stack.push_async_callback(asyncio.to_thread, closing.close)
            app.state.progress = await stack.enter_async_context(Progress(app.state.gateway))
            yield

    app = FastAPI(
        title="Dataset Management Cloud Platform",
        version="1",
        summary="Ask for access to a protected image data set, and have it restored.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
        redirect_slashes=False,
    )
    errors.install(app)
    observers: list[Observe] = []
    for module in ROUTERS:
        app.include_router(module.router, prefix=API)
    app.include_router(health.router)
    _extras(app, settings, observers)
    streamed = {f"{API}{restorations.UPLOAD_PATH}", *getattr(_module("pages"), "STREAMED", ())}
    app.add_middleware(Frame, streamed=frozenset(streamed), observers=observers)
    openapi.install(app)
    return app


def _open(app: FastAPI, settings: Settings, limiter: Limiter, dispatch: bool) -> ExitStack:
    """Open everything that calls need, and return what closes it again."""
    with ExitStack() as stack:
        if settings.s3_endpoint is None:
            from storage.server import running_server

            stack.enter_context(running_server(settings.home_path()))
        private, public = open_store(settings, "private"), open_store(settings, "public")
        private.ensure_bucket()
        public.ensure_bucket()
        registry = stack.enter_context(open_registry(settings))
        audit = open_audit_log(settings)
        stack.callback(audit.close)
        workspace = Workspace(
            make_private(settings.home_path("work"), "gateway"), settings.gateway_space, settings.gateway_user_space
        )
        stack.callback(workspace.close)
        gateway = Gateway(settings, registry, audit, private, public, limiter, workspace)
        gateway.background = stack.enter_context(Background(gateway, dispatch))
        app.state.gateway = gateway
        return stack.pop_all()


def _extras(app: FastAPI, settings: Settings, observers: list[Observe]) -> None:
    """The pages and the metrics."""
    if pages := _module("pages"):
        if hasattr(pages, "install"):
            pages.install(app, settings)
        app.include_router(pages.router, include_in_schema=False)
        static = Path(__file__).parent / "static"
        if static.is_dir():
            app.mount("/static", StaticFiles(directory=static), name="static")
    if metrics := _module("metrics"):
        app.include_router(metrics.router)
        observers.append(metrics.observe)


def _module(name: str) -> ModuleType | None:
    full = f"flows.gateway.{name}"
    return importlib.import_module(full) if importlib.util.find_spec(full) else None
