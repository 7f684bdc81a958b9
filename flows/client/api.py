"""`Client`: one method for each thing that a gateway does. What it returns are the gateway's own models.

Lists are read page by page, as they are iterated over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from flows.client import events
from flows.client.connection import PATIENCE_SECONDS, Body, Connection, Tell
from flows.gateway import schemas
from flows.gateway.schemas import (
    AccessRequestInfo,
    DatasetInfo,
    GrantInfo,
    Me,
    NewToken,
    Page,
    Report,
    RestorationInfo,
    RestorationPage,
    ResultFile,
    TermsInfo,
    TextPage,
    TokenInfo,
    UploadAddress,
    UsageInfo,
    VersionInfo,
)
from storage.errors import ServiceError

Model = TypeVar("Model", bound=BaseModel)

PAGE = 200
TAKING_IN_SECONDS = 900.0
"""How long the gateway may take to look through what was uploaded before it answers."""


class Client:
    """What the holder of a token may do at one gateway. Safe to use from several threads.

    Every method raises the error that the gateway answered with, as a class of `storage/errors.py`, or ServiceError
    when it can not be reached.

    Args:
        url: the gateway's address, e.g. https://dmcp.example; http:// for this machine only.
        token: as it was handed out.
        patience: seconds of waiting between the tries of a call that may be made again, in all.
        insecure: send the token over http:// to other machines as well.
        tell: told why it waits.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        patience: float = PATIENCE_SECONDS,
        insecure: bool = False,
        tell: Tell | None = None,
    ) -> None:
        self.connection = Connection(url, token, patience, insecure, tell)

    @property
    def url(self) -> str:
        """The gateway's address."""
        return self.connection.url

    def close(self) -> None:
        """End all connections."""
        self.connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # --- me ----------------------------------------------------------------------------------------------------------

    def me(self) -> Me:
        """Whose token it is, and what they may have restored."""
        return self._get(Me, "/me")

    def rotate_token(self) -> str:
        """A new token, which ends when this client's would have; all others of the caller's are worth nothing now."""
        return _parsed(NewToken, self.connection.call("POST", "/me/token")).token

    def tokens(self) -> Iterator[TokenInfo]:
        """The caller's tokens, of which only the beginnings are known."""
        return self._pages(Page[TokenInfo], "/me/tokens")

    def revoke_token(self, token_id: int) -> None:
        """Revoke one of the caller's tokens."""
        self.connection.call("DELETE", f"/me/tokens/{token_id}")

    # --- data sets and access ----------------------------------------------------------------------------------------

    def datasets(self) -> Iterator[DatasetInfo]:
        """All data sets, and how the caller stands to each."""
        return self._pages(TextPage[DatasetInfo], "/datasets")

    def dataset(self, name: str) -> DatasetInfo:
        """One data set."""
        return self._get(DatasetInfo, f"/datasets/{_part(name)}")

    def versions(self, dataset: str) -> Sequence[VersionInfo]:
        """The published versions, the newest first."""
        return self._get(schemas.Versions, f"/datasets/{_part(dataset)}/versions").items

    def terms(self, dataset: str) -> TermsInfo:
        """The terms of use in force. Raises NotFound when there are none."""
        return self._get(TermsInfo, f"/datasets/{_part(dataset)}/terms")

    def accept_terms(self, dataset: str, version: int) -> None:
        """Accept the terms of use, by their version."""
        self.connection.call("POST", f"/datasets/{_part(dataset)}/terms/{version}/accept", again=True)

    def ask_access(
        self,
        dataset: str,
        reason: str,
        *,
        version: str | None = None,
        classes: Sequence[str] | None = None,
        images: int | None = None,
        days: int | None = None,
    ) -> AccessRequestInfo:
        """Ask the owner for access to a data set, or to a part of it."""
        asked = {"dataset": dataset, "reason": reason, "version": version, "images": images, "days": days}
        return self._post(
            AccessRequestInfo, "/access-requests", {**asked, "classes": None if classes is None else list(classes)}
        )

    def access_requests(self, state: str | None = None) -> Iterator[AccessRequestInfo]:
        """What the caller asked for, and what was decided; the newest first."""
        return self._pages(Page[AccessRequestInfo], "/access-requests", state=state)

    def withdraw(self, access_request: int) -> AccessRequestInfo:
        """Take back what was asked for and nobody decided yet."""
        return self._post(AccessRequestInfo, f"/access-requests/{access_request}/withdraw")

    def grants(self) -> Iterator[GrantInfo]:
        """The caller's grants, the newest first."""
        return self._pages(Page[GrantInfo], "/grants")

    def ask_renewal(
        self, grant_id: int, reason: str, *, days: int | None = None, images: int | None = None
    ) -> AccessRequestInfo:
        """Ask the owner to renew a grant."""
        asked = {"reason": reason, "days": days, "images": images}
        return self._post(AccessRequestInfo, f"/grants/{grant_id}/renew", asked)

    # --- restorations ------------------------------------------------------------------------------------------------

    def start(
        self, dataset: str, version: str = "latest", subset: Sequence[str] | None = None, *, key: str | None = None
    ) -> RestorationInfo:
        """Have a published version restored, or some of its samples or shards.

        Args:
            dataset: its name.
            version: its id, or "latest".
            subset: sample keys or shard names.
            key: made up by the caller: started once, however often this is called with it.
        """
        source = {"dataset": dataset, "version": version, "subset": None if subset is None else list(subset)}
        return self._start("/restorations", key, json=source)

    def start_upload(
        self, upload: str, filename: str = "upload", dataset: str | None = None, *, key: str | None = None
    ) -> RestorationInfo:
        """Have restored what was put to the address of an upload (`new_upload`)."""
        return self._start("/restorations", key, json={"upload": upload, "filename": filename, "dataset": dataset})

    def send(
        self,
        body: Body,
        size: int,
        media: str,
        filename: str = "upload",
        dataset: str | None = None,
        *,
        key: str | None = None,
    ) -> RestorationInfo:
        """Send a zip, a tar or a PNG to the gateway and have the images in it restored.

        Args:
            body: gives the content from its beginning, each time it is called.
            size: bytes of it.
            media: its content type.
            filename: what it is called in lists.
            dataset: the data set that the images belong to, if known.
            key: as `start`.
        """
        headers = {"Content-Type": media, "Content-Length": str(size)}
        params = {"filename": filename, "dataset": dataset}
        return self._start("/restorations/upload", key, body=body, params=params, headers=headers)

    def new_upload(self, size: int) -> UploadAddress:
        """An address of the object store to PUT exactly so many bytes to."""
        return self._post(UploadAddress, "/uploads", {"bytes": size}, again=True)

    def started(self, key: str) -> RestorationInfo | None:
        """The restoration that was started with this key; None when there is none."""
        found = self._get(RestorationPage, "/restorations", key=key).items
        return found[0] if found else None

    def restorations(self, state: str | None = None) -> Iterator[RestorationInfo]:
        """The caller's restorations, the newest first."""
        return self._pages(RestorationPage, "/restorations", state=state)

    def restoration(self, restoration_id: str) -> RestorationInfo:
        """How far a restoration is."""
        return self._get(RestorationInfo, f"/restorations/{_part(restoration_id)}")

    def follow(self, restoration_id: str) -> Iterator[RestorationInfo]:
        """A restoration whenever it changed, until it is over (the last one)."""
        return events.follow(self.connection, _part(restoration_id), lambda: self.restoration(restoration_id))

    def wait(self, restoration_id: str, tell: Callable[[RestorationInfo], None] | None = None) -> RestorationInfo:
        """Wait until a restoration is done, failed or cancelled."""
        for info in self.follow(restoration_id):
            if tell is not None:
                tell(info)
        return info

    def cancel(self, restoration_id: str) -> RestorationInfo:
        """Cancel a restoration that is not over."""
        return self._post(RestorationInfo, f"/restorations/{_part(restoration_id)}/cancel")

    def retry(self, restoration_id: str) -> RestorationInfo:
        """Have a restoration tried again that failed; no image is charged twice."""
        return self._post(RestorationInfo, f"/restorations/{_part(restoration_id)}/retry", again=True)

    def report(self, restoration_id: str) -> Report:
        """What became of each image, under the caller's own names."""
        return self._get(Report, f"/restorations/{_part(restoration_id)}/report")

    def index(self, restoration_id: str) -> bytes:
        """What was handed in under which name: JSON, as `tasks.request_index.parse_index` reads it."""
        return self.connection.call("GET", f"/restorations/{_part(restoration_id)}/index").content

    def results(self, restoration_id: str) -> Iterator[ResultFile]:
        """The result shards, with addresses to fetch them from."""
        return self._pages(Page[ResultFile], f"/restorations/{_part(restoration_id)}/results")

    # --- the owner's side --------------------------------------------------------------------------------------------

    def owned_datasets(self) -> Iterator[DatasetInfo]:
        """The caller's own data sets."""
        return self._pages(TextPage[DatasetInfo], "/owner/datasets")

    def set_terms(self, dataset: str, text: str) -> TermsInfo:
        """Set the terms of use; a new text has to be accepted before anything more is restored."""
        answer = self.connection.call("PUT", f"/owner/datasets/{_part(dataset)}/terms", json={"text": text})
        return _parsed(TermsInfo, answer)

    def asked(self, state: str | None = "open") -> Iterator[AccessRequestInfo]:
        """Requests for access to the caller's data sets."""
        return self._pages(Page[AccessRequestInfo], "/owner/access-requests", state=state)

    def approve(self, access_request: int, **changes: Any) -> GrantInfo:
        """Grant what was asked for; `changes`: days, quota, version, classes, note."""
        return self._post(GrantInfo, f"/owner/access-requests/{access_request}/approve", changes)

    def deny(self, access_request: int, note: str) -> AccessRequestInfo:
        """Deny a request, with the reason."""
        return self._post(AccessRequestInfo, f"/owner/access-requests/{access_request}/deny", {"note": note})

    def owned_grants(self, dataset: str | None = None) -> Iterator[GrantInfo]:
        """Grants for the caller's data sets."""
        return self._pages(Page[GrantInfo], "/owner/grants", dataset=dataset)

    def revoke_grant(self, grant_id: int) -> GrantInfo:
        """End a grant now; what runs under it stops."""
        return self._post(GrantInfo, f"/owner/grants/{grant_id}/revoke", again=True)

    def usage(self, dataset: str | None = None, days: int = 90) -> Sequence[UsageInfo]:
        """How many images who had restored, by day."""
        return self._get(schemas.Usage, "/owner/usage", dataset=dataset, days=days).items

    # --- how ---------------------------------------------------------------------------------------------------------

    def _get(self, model: type[Model], path: str, **params: Any) -> Model:
        return _parsed(model, self.connection.call("GET", path, params=params))

    def _post(self, model: type[Model], path: str, given: Any = None, again: bool = False) -> Model:
        return _parsed(model, self.connection.call("POST", path, json=given, again=again))

    def _start(self, path: str, key: str | None, **more: Any) -> RestorationInfo:
        headers = {**more.pop("headers", {}), **({} if key is None else {"Idempotency-Key": key})}
        answer = self.connection.call(
            "POST", path, again=key is not None, headers=headers, timeout=TAKING_IN_SECONDS, **more
        )
        return _parsed(RestorationInfo, answer)

    def _pages(self, page: type[Any], path: str, **params: Any) -> Iterator[Any]:
        after = None
        while True:
            found = self._get(page, path, limit=PAGE, after=after, **params)
            yield from found.items
            if found.next is None or not found.items:
                return
            after = found.next


def _parsed(model: type[Model], answer: httpx.Response) -> Model:
    """An answer's content. Raises ServiceError when it is not what it should be."""
    try:
        return model.model_validate_json(answer.content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"][:3])
        raise ServiceError(
            f"{answer.url.host} answered something else than a gateway does ({where!a}: {first['msg']}).",
            "Check the address; or the gateway is of another release than this client.",
        ) from None


def _part(name: str) -> str:
    """A name as one part of a path, so that no name leads elsewhere."""
    from urllib.parse import quote

    return quote(name, safe="") if name not in (".", "..") else "%2E" * len(name)
