"""Before restored images leave the service: the grants are looked at again, and the download is put on record.

    datasets = check_grants(registry, request)                          # NotAuthorised: not any more
    record_download(log, request, datasets, actor, "archive", {"images": 3})
    hand_out(settings, request_id, out)                                 # both, for `dmcp restore` on this machine

No grant in force, or no entry in the audit log: no data.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select

from storage.audit import AuditLog, open_audit_log
from storage.database import utc_now
from storage.errors import NoGrant
from storage.policies import Asked, check_enabled, first_refusal
from storage.registry import Registry, Request, open_registry
from storage.registry_models import Charge, Grant
from storage.registry_users import LOCAL
from storage.settings import Settings


def hand_out(settings: Settings, request_id: str, out: str) -> None:
    """What was restored for a request is about to be fetched to `out`, by somebody on the service's own machine.

    Raises:
        NotAuthorised: a grant that it was restored under does not hold any more, and no other covers as much.
        EnvironmentFault: it can not be put on record; then nothing may be fetched.
    """
    with open_registry(settings) as registry, open_audit_log(settings) as log:
        request = registry.get_request(request_id)
        if request.restored:
            datasets = check_grants(registry, request)
            record_download(log, request, datasets, LOCAL, "results", {"images": request.restored, "to": out})


def check_grants(registry: Registry, request: Request) -> list[str]:
    """See that what was restored is covered now, and name the data sets it is of.

    Raises:
        NotAuthorised: a grant that it was restored under does not hold any more, and no other covers as much.
    """
    check_enabled(request.user)
    charged = select(Charge.grant_id).where(Charge.request_id == request.id)
    used = registry.all(select(Grant).where(Grant.id.in_(charged)))
    now = utc_now()
    for grant in used:
        if grant.in_force(now) or _is_covered(registry, request, grant, now):
            continue
        refusal = first_refusal(Asked(request.user, grant.dataset, grant.version, 0, now, grant))
        raise refusal.error if refusal else NoGrant("The grant does not hold any more.", "Ask its owner.")
    if used:
        return sorted({grant.dataset for grant in used})
    if request.dataset is None:
        raise NoGrant("It is not on record under which grant this was restored.", "Make the request again.")
    registry.authorise(request.user_id, request.dataset, version=_version(request))
    return [request.dataset]


def record_download(
    log: AuditLog, request: Request, datasets: Sequence[str], actor: str, subject: str, details: Mapping[str, Any]
) -> None:
    """Put a download on record, for the owners of all data sets that it is of.

    Raises:
        EnvironmentFault: it can not be written; then nothing may be given out.
    """
    for dataset in datasets:
        log.record(actor, "download", dataset=dataset, request_id=request.id, subject=subject, details=details)


def _is_covered(registry: Registry, request: Request, old: Grant, now: datetime) -> bool:
    """Whether another grant in force covers all that the old one did."""
    return any(
        other.in_force(now)
        and other.version in (None, old.version, _version(request))
        and _holds_all(other.classes, old.classes)
        and _holds_all(other.samples, old.samples)
        for other in registry.list_grants(request.user.name, old.dataset)
    )


def _holds_all(bound: list[str] | None, before: list[str] | None) -> bool:
    return bound is None or (before is not None and set(before) <= set(bound))


def _version(request: Request) -> str | None:
    return request.source.rpartition("@")[2] if request.kind == "published" else None
