"""Every operation of the OpenAPI document against every kind of caller."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from tests.flows.gateway.conftest import CALLERS, STRANGERS, Site, png

OPEN = {"healthz": 200, "readyz": 200, "docs": 200}
"""What needs no token."""

# What user, other, owner, other_owner and operator are answered. The objects are the user's, the data set the owner's.
KNOWN = ("user", "other", "owner", "other_owner", "operator")
ALL = (200,) * 5
MINE = (200, 404, 404, 404, 404)
MINE_201 = (201, 404, 404, 404, 404)
OWNERS = (403, 403, 200, 200, 200)
OWNED = (403, 403, 200, 404, 200)
OPERATORS = (403, 403, 403, 403, 200)

EXPECTED: dict[str, tuple[int, ...]] = {
    "get_me": ALL,
    "rotate_token": (201,) * 5,
    "list_tokens": ALL,
    "revoke_token": (204, 404, 404, 404, 404),
    "list_datasets": ALL,
    "get_dataset": ALL,
    "list_dataset_versions": ALL,
    "get_terms": ALL,
    "accept_terms": (204,) * 5,
    "list_access_requests": ALL,
    "ask_access": (201,) * 5,
    "get_access_request": MINE,
    "withdraw_access_request": MINE,
    "list_grants": ALL,
    "get_grant": MINE,
    "ask_renewal": MINE_201,
    "list_restorations": ALL,
    "start_restoration": (201, 403, 403, 403, 403),
    "upload_restoration": (201, 403, 403, 403, 403),
    "create_upload": (201, 403, 403, 403, 403),
    "get_restoration": MINE,
    "cancel_restoration": MINE,
    "retry_restoration": MINE,
    "follow_restoration": MINE,
    "get_report": MINE,
    "get_index": MINE,
    "list_results": MINE,
    "get_result": MINE,
    "get_archive": MINE,
    "list_owned_datasets": OWNERS,
    "register_dataset": (403, 403, 201, 403, 201),
    "set_terms": OWNED,
    "list_owned_access_requests": OWNERS,
    "approve_access_request": OWNED,
    "deny_access_request": OWNED,
    "list_owned_grants": OWNERS,
    "create_grant": (403, 403, 201, 404, 201),
    "revoke_grant": OWNED,
    "renew_grant": OWNED,
    "get_usage": OWNED,
    "get_owner_audit": OWNED,
    "list_users": OPERATORS,
    "create_user": (403, 403, 403, 403, 201),
    "disable_user": OPERATORS,
    "enable_user": OPERATORS,
    "replace_token": (403, 403, 403, 403, 201),
    "get_audit": OPERATORS,
    "verify_audit": OPERATORS,
    "metrics": OPERATORS,
}


@pytest.fixture(scope="module")
def document(site: Site) -> dict[str, Any]:
    return site.call("GET", "/openapi.json", "none").json()


@pytest.fixture(scope="module")
def operations(document: dict[str, Any]) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Operation id to method, path and entry."""
    return {
        entry["operationId"]: (method.upper(), path, entry)
        for path, item in document["paths"].items()
        for method, entry in item.items()
    }


@pytest.fixture(scope="module")
def done(site: Site) -> str:
    """A restoration of the user's that is done."""
    request_id = site.upload(png(1), "image/png").json()["id"]
    site.serve(request_id)
    return str(request_id)


class Objects:
    """Makes what a call needs, anew where the call changes it."""

    def __init__(self, site: Site, done: str) -> None:
        self.site = site
        self.done = done
        self.user = site.id_of("user")

    def access_request(self) -> int:
        classes = [f"class-{uuid4().hex}"]
        return self.site.registry.ask_access(self.user, "tiny", "to see", classes=classes).id

    def grant(self) -> int:
        return self.site.registry.grant(self.site.names["user"], "tiny", classes=[f"class-{uuid4().hex}"]).id

    def token(self) -> int:
        self.site.registry.add_token(self.site.names["user"], uuid4().hex)
        return max(token.id for token in self.site.registry.list_tokens(self.site.names["user"]))

    def pending(self) -> str:
        index = self.site.private.get_bytes(f"requests/{self.done}/input.json")
        request_id = self.site.registry.create_request(self.user, "upload", None, "x")
        self.site.private.put_bytes(f"requests/{request_id}/input.json", index)
        return request_id

    def failed(self) -> str:
        request_id = self.pending()
        self.site.registry.set_request_state(request_id, "failed")
        return request_id

    def restoration(self, operation: str) -> Callable[[], str]:
        made = {"cancel_restoration": self.pending, "retry_restoration": self.failed}
        return made.get(operation, lambda: self.done)

    def someone(self) -> str:
        name = f"someone-{uuid4().hex[:8]}"
        self.site.registry.add_user(name)
        return name

    def parameters(self, operation: str) -> dict[str, Any]:
        """Values for the path's placeholders."""
        make: dict[str, Callable[[], Any]] = {
            "access_request_id": self.access_request,
            "grant_id": self.grant,
            "token_id": self.token,
            "restoration_id": self.restoration(operation),
            "dataset": lambda: "tiny",
            "version": lambda: 1,
            "name": lambda: "result-000000.tar" if operation == "get_result" else self.someone(),
        }
        _, path, _ = self.paths[operation]
        return {name: make[name]() for name in make if f"{{{name}}}" in path}

    paths: dict[str, tuple[str, str, dict[str, Any]]]

    def more(self, operation: str) -> dict[str, Any]:
        """Body, query and headers."""
        bodies: dict[str, Callable[[], dict[str, Any]]] = {
            "ask_access": lambda: {"dataset": "tiny", "reason": "to see", "classes": [uuid4().hex]},
            "ask_renewal": lambda: {"reason": "not done yet"},
            "start_restoration": lambda: {"dataset": "tiny"},
            "create_upload": lambda: {"bytes": 10},
            "register_dataset": lambda: {"name": "tiny", "title": "Tiny"},
            "set_terms": lambda: {"text": "Be nice."},
            "approve_access_request": lambda: {"days": 3},
            "deny_access_request": lambda: {"note": "no"},
            "create_grant": lambda: {"user": self.site.names["other"], "dataset": "tiny", "classes": [uuid4().hex]},
            "renew_grant": lambda: {"expires": "2090-01-01T00:00:00Z"},
            "create_user": lambda: {"name": f"new-{uuid4().hex[:8]}"},
        }
        if operation in bodies:
            return {"json": bodies[operation]()}
        if operation == "upload_restoration":
            return {"content": png(3), "headers": {"Content-Type": "image/png"}}
        return {"params": {"dataset": "tiny"}} if operation in ("get_usage", "get_owner_audit") else {}


def test_every_operation_has_an_expectation(operations: dict[str, Any]) -> None:
    assert set(operations) - set(EXPECTED) - set(OPEN) == set()
    assert (set(EXPECTED) | set(OPEN)) - set(operations) == set()


def test_what_needs_a_token_says_so(operations: dict[str, Any]) -> None:
    for name, (_, _, entry) in operations.items():
        assert ("security" in entry) == (name not in OPEN), name
        assert entry.get("description"), name
        assert "500" in entry["responses"], name


@pytest.mark.parametrize("caller", CALLERS)
def test_callers(site: Site, operations: dict[str, Any], done: str, caller: str) -> None:
    """Every operation, with objects of the user's and the owner's."""
    objects = Objects(site, done)
    objects.paths = operations
    wrong = []
    for operation, (method, path, entry) in operations.items():
        if caller in STRANGERS:
            expected = OPEN.get(operation, 401)
        else:
            expected = OPEN.get(operation) or EXPECTED[operation][KNOWN.index(caller)]
        where = path.format(**objects.parameters(operation))
        answer = site.call(method, where, caller, **objects.more(operation))
        if operation == "rotate_token" and answer.status_code == 201:
            site.tokens[caller] = answer.json()["token"]
        if answer.status_code != expected or str(answer.status_code) not in entry["responses"]:
            wrong.append((operation, answer.status_code, expected, answer.text[:200]))
        if answer.status_code >= 400:
            assert set(answer.json()) == {"error", "what", "cure", "request_id"}
            assert answer.json()["request_id"] == answer.headers["x-request-id"]
        if answer.status_code == 401:
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"] == "BadToken"
    assert not wrong


def test_what_is_anothers_is_answered_like_what_does_not_exist(
    site: Site, operations: dict[str, Any], done: str
) -> None:
    """Byte for byte, but for the id itself."""
    objects = Objects(site, done)
    pairs = {
        f"restorations/{done}": f"restorations/{'0' * 32}",
        f"grants/{objects.grant()}": "grants/999999",
        f"access-requests/{objects.access_request()}": "access-requests/999999",
    }
    for theirs, nothing in pairs.items():
        answers = [site.call("GET", path, "other") for path in (theirs, nothing)]
        texts = [
            {k: v.replace(path.rpartition("/")[2], "ID") for k, v in answer.json().items() if k != "request_id"}
            for answer, path in zip(answers, (theirs, nothing), strict=True)
        ]
        assert texts[0] == texts[1]
        assert {answer.status_code for answer in answers} == {404}


@pytest.mark.parametrize("named_by", ["grant", "request"])
def test_a_data_set_in_use_without_an_owner_is_not_claimed(site: Site, named_by: str) -> None:
    """Only an operator says whose the images are that others hold grants for, or were given."""
    name = f"orphan-{named_by}"
    if named_by == "grant":
        site.registry.grant(site.names["user"], name)
    else:
        site.registry.create_request(site.id_of("user"), "published", name, f"{name}@latest")
    refused = site.call("POST", "owner/datasets", "owner", json={"name": name})
    assert (refused.status_code, refused.json()["error"]) == (403, "Forbidden")
    assert name not in site.call("GET", "owner/datasets?limit=1000", "operator").text
    assert site.call("POST", "owner/datasets", "operator", json={"name": name}).status_code == 201
    assert site.call("POST", "owner/datasets", "owner", json={"name": f"new-{named_by}"}).status_code == 201
