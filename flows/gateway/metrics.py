"""Metrics for Prometheus, at /metrics, for who has an operator's token.

Every application has a registry of its own. What is counted here is counted by `observe`, which `frame.py` calls after
each call; what stands in the database is read when Prometheus asks, with one query for all restorations.

No label has a value that a user chooses: no names, no ids, no data sets; routes are templates, methods are known ones.
"""

import logging
import platform
import threading
from collections.abc import Iterator
from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from sqlalchemy import Row, and_, case, func, select
from starlette.types import Scope

from flows.console import version
from flows.dispatch import STALE_SECONDS
from flows.gateway.auth import operator_role
from flows.gateway.errors import problems
from flows.gateway.logs import route_of
from storage.audit_checkpoints import remembered
from storage.database import utc_now
from storage.errors import AuditBroken
from storage.registry_models import STATES
from storage.registry_models import Request as Restoration

if TYPE_CHECKING:
    from flows.gateway.state import Gateway

router = APIRouter(tags=["about"])
log = logging.getLogger("dmcp.gateway")

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
"""Seconds. Calls that stream (uploads, archives, events) take as long as they like: see `route`."""

_making = threading.Lock()
disable_created_metrics()  # a second series for each, of which Prometheus makes nothing


class Metrics:
    """What one application counts."""

    def __init__(self, app: FastAPI) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "dmcp_http_requests",
            "Calls that ended, by route template, method and status (0: the client left before there was one).",
            ("route", "method", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "dmcp_http_request_seconds",
            "From the first byte of a call to the last byte of its answer.",
            ("route", "method"),
            buckets=BUCKETS,
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)
        self.registry.register(_State(app))

    def observe(self, scope: Scope, status: int, seconds: float) -> None:
        """Count one call."""
        route, given = route_of(scope), scope["method"]
        method = given if given in METHODS else "other"
        self.requests.labels(route, method, status).inc()
        self.seconds.labels(route, method).observe(seconds)


def metrics_of(app: FastAPI) -> Metrics:
    """This application's metrics, made when they are first needed."""
    found: Metrics | None = getattr(app.state, "metrics", None)
    if found is None:
        with _making:
            found = getattr(app.state, "metrics", None)
            if found is None:
                found = app.state.metrics = Metrics(app)
    return found


def observe(scope: Scope, status: int, seconds: float) -> None:
    """Count one call, for the application that answered it."""
    if isinstance(app := scope.get("app"), FastAPI):
        metrics_of(app).observe(scope, status, seconds)


@router.get(
    "/metrics",
    dependencies=[Depends(operator_role)],
    response_class=Response,
    responses={
        200: {"description": "Prometheus' text format.", "content": {"text/plain": {"schema": {"type": "string"}}}},
        **problems(403),
    },
)
def metrics(request: Request) -> Response:
    """Show metrics for Prometheus (operator)."""
    return Response(generate_latest(metrics_of(request.app).registry), media_type=CONTENT_TYPE_LATEST)


# --- what is read when Prometheus asks -------------------------------------------------------------------------------


class _State(Collector):
    """Registry, audit log, workspace and threads, as they are now."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app

    def describe(self) -> list[Metric]:
        """Nothing beforehand: registering must not ask the database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Everything; the build alone while the application has not started."""
        yield _labelled(
            "dmcp_build_info",
            "1, with what runs here.",
            ("version", "python"),
            {(version(), platform.python_version()): 1.0},
        )
        gateway: Gateway | None = getattr(self.app.state, "gateway", None)
        if gateway is None:
            return
        yield from _restorations(gateway)
        yield from _audit(gateway)
        yield from _here(gateway)
        if (progress := getattr(self.app.state, "progress", None)) is not None:
            yield _gauge("dmcp_listeners", "Streams of events that are open.", progress.listeners.total())


def _restorations(gateway: "Gateway") -> Iterator[Metric]:
    rows = _by_state(gateway)
    now = utc_now()
    oldest = rows["pending"].oldest if "pending" in rows else None
    yield _labelled(
        "dmcp_restorations",
        "Restorations on record, by state.",
        ("state",),
        {(state,): rows[state].number if state in rows else 0 for state in STATES},
    )
    yield _labelled(
        "dmcp_images",
        "Images that all restorations on record gave back or refused. Falls when one is tried again.",
        ("outcome",),
        {
            ("restored",): sum(row.restored for row in rows.values()),
            ("refused",): sum(row.refused for row in rows.values()),
        },
    )
    yield _gauge(
        "dmcp_queue_age_seconds",
        "How long the oldest pending restoration waits; 0: none does.",
        0.0 if oldest is None else max(0.0, (now - oldest).total_seconds()),
    )
    yield _gauge(
        "dmcp_stale_restorations",
        f"Running restorations whose worker gave no sign of life for {STALE_SECONDS:.0f} s.",
        sum(row.stale for row in rows.values()),
    )


def _by_state(gateway: "Gateway") -> dict[str, Row[Any]]:
    """One row a state: how many, since when the oldest, images restored and refused, how many are stale."""
    last = func.coalesce(Restoration.heartbeat, Restoration.started, Restoration.created)
    quiet = and_(Restoration.state == "running", last < utc_now() - timedelta(seconds=STALE_SECONDS))
    query = select(
        Restoration.state,
        func.count().label("number"),
        func.min(Restoration.created).label("oldest"),
        func.sum(Restoration.restored).label("restored"),
        func.sum(Restoration.refused).label("refused"),
        func.sum(case((quiet, 1), else_=0)).label("stale"),
    ).group_by(Restoration.state)
    with gateway.registry.read() as session:
        return {row.state: row for row in session.execute(query)}


def _audit(gateway: "Gateway") -> Iterator[Metric]:
    head = gateway.audit.head()
    anchored, moment, readable = 0, 0.0, True
    try:
        if (anchor := remembered(gateway.audit.home)) is not None:
            anchored, moment = anchor.seq, anchor.moment.astimezone(UTC).timestamp()
    except AuditBroken as error:
        log.error("the audit log's anchor can not be read: %s", error)
        readable = False
    yield _gauge("dmcp_audit_head", "Number of the audit log's last entry.", head)
    yield _gauge("dmcp_audit_unanchored_entries", "Entries since the last signed checkpoint.", max(0, head - anchored))
    yield _gauge("dmcp_audit_anchor_timestamp_seconds", "When the last checkpoint was signed; 0: never.", moment)
    yield _gauge("dmcp_audit_anchor_readable", "0: the record of the last checkpoint was altered.", float(readable))


def _here(gateway: "Gateway") -> Iterator[Metric]:
    yield _gauge(
        "dmcp_uploads_in_flight",
        "Uploads and downloads that use disk space of this process now.",
        sum(1 for _ in gateway.uploads.folder.iterdir()),
    )
    yield _gauge("dmcp_workspace_bytes", "Disk space that is reserved for them.", gateway.uploads.taken)
    yield _gauge("dmcp_workspace_limit_bytes", "How much of it there is.", gateway.uploads.most)
    threads = gateway.background.threads if gateway.background is not None else []
    alive: dict[tuple[str, ...], float] = {
        (thread.name.removeprefix("gateway-"),): float(thread.is_alive()) for thread in threads
    }
    yield _labelled("dmcp_background_alive", "1 while this thread lives.", ("thread",), alive)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _labelled(name: str, text: str, labels: tuple[str, ...], values: dict[tuple[str, ...], float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for of, value in values.items():
        family.add_metric(of, value)
    return family
