"""Logging in and out, and who may see what: without a browser, so that nothing is sent but what is written here."""

import threading
import time
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import httpx
import itsdangerous
import pytest
from fastapi.routing import APIRoute
from pydantic import SecretStr

from flows.gateway import pages_operator, pages_owner, pages_records, pages_restorations, pages_user
from flows.gateway.pages_session import COOKIE, is_ours, session_secret
from storage.database import utc_now
from storage.settings import Settings
from tests.pages.place import Place
from tests.pages.visitor import HTML, Visitor

TOPICS = (pages_user, pages_restorations, pages_owner, pages_records, pages_operator)
FILLED = {"dataset": "pets", "grant_id": "1", "identity": "1", "name": "bob"}


def paths(method: str, *modules: object) -> list[str]:
    """The addresses of all pages (or forms), with their parts filled in."""
    found = []
    for module in modules or TOPICS:
        for route in module.router.routes:  # type: ignore[attr-defined]
            if isinstance(route, APIRoute) and method in route.methods:
                identity = uuid4().hex if module is pages_restorations else "1"
                found.append(route.path.format(**FILLED | {"identity": identity}))
    return found


def test_the_cookie_holds_no_token_and_is_out_of_reach_for_scripts_and_other_sites(place: Place) -> None:
    visitor = Visitor(place)
    set_cookie = visitor.log_in(place.tokens["ann"]).headers["set-cookie"].lower()
    assert "httponly" in set_cookie
    assert "samesite=strict" in set_cookie
    assert "max-age=43200" in set_cookie
    assert "secure" not in set_cookie  # on loopback
    signed = visitor.client.cookies[COOKIE]
    content = itsdangerous.base64_decode(signed.split(".")[0].encode())
    assert place.tokens["ann"].encode() not in content
    assert b'"csrf"' in content


def test_over_https_the_cookie_is_kept_to_it(place: Place) -> None:
    visitor = Visitor(place, **{"X-Forwarded-Proto": "https"})
    assert "secure" in visitor.get("/").headers["set-cookie"].lower()


def test_a_wrong_token_is_said_so_and_never_shown(place: Place) -> None:
    visitor = Visitor(place, **{"X-Forwarded-For": "203.0.113.7"})
    wrong = "dmcp_" + "A" * 43
    answer = visitor.log_in(wrong)
    assert answer.status_code == 401
    assert "The token is not known." in answer.text
    assert wrong not in answer.text
    assert visitor.get("/app").headers["location"] == "/?next=%2Fapp"


def test_failed_logins_are_limited(place: Place) -> None:
    visitor = Visitor(place, **{"X-Forwarded-For": "203.0.113.8"})
    csrf = visitor.csrf("/")
    codes = [visitor.post("/login", csrf=csrf, token=f"dmcp_{'B' * 43}").status_code for _ in range(21)]
    assert codes == [401] * 20 + [429]
    answer = visitor.post("/login", csrf=csrf, token="x")
    assert int(answer.headers["retry-after"]) > 0
    assert "Too many failed logins" in answer.text
    assert Visitor(place, "ann").get("/app").status_code == 200  # another address


def test_logging_out_ends_it(place: Place) -> None:
    visitor = Visitor(place, "ann")
    assert visitor.post("/logout").headers["location"] == "/"
    assert COOKIE not in visitor.client.cookies
    assert visitor.get("/app").status_code == 303


def test_logging_out_ends_every_copy_of_the_cookie_and_no_other_session(place: Place) -> None:
    visitor, elsewhere = Visitor(place, "ann"), Visitor(place, "ann")
    copied = visitor.client.cookies[COOKIE]
    thief = Visitor(place)
    thief.client.cookies.set(COOKIE, copied)
    assert thief.get("/app").status_code == 200
    visitor.post("/logout")
    thief.client.cookies.set(COOKIE, copied)
    assert thief.get("/app").status_code == 303
    again = httpx.get(f"{place.address}/api/v1/me", cookies={COOKIE: copied})
    assert (again.status_code, again.json()["error"]) == (401, "BadToken")
    assert elsewhere.get("/app").status_code == 200


def test_logging_in_again_ends_the_session_before(place: Place) -> None:
    visitor = Visitor(place, "ann")
    before = visitor.client.cookies[COOKIE]
    visitor.post("/login", csrf=visitor.csrf("/app"), token=place.tokens["bob"])
    assert httpx.get(f"{place.address}/api/v1/me", cookies={COOKIE: before}).status_code == 401


def test_a_revoked_token_a_disabled_user_and_a_forged_cookie_are_out_at_once(place: Place) -> None:
    name = f"eve-{uuid4().hex[:6]}"
    place.tokens[name] = place.registry.add_user(name)
    visitor = Visitor(place, name)
    place.registry.set_disabled(name, True)
    assert visitor.get("/app").status_code == 303
    assert "was withdrawn" in visitor.get("/").text
    place.registry.set_disabled(name, False)
    visitor = Visitor(place, name)
    place.registry.revoke_token(place.registry.list_tokens(name)[0].id)
    assert visitor.get("/app").status_code == 303
    visitor = Visitor(place, "ann")
    signed = visitor.client.cookies[COOKIE]
    visitor.client.cookies.clear()
    visitor.client.cookies.set(COOKIE, "x" + signed[1:])
    assert visitor.get("/app").status_code == 303


def test_a_session_has_an_end_however_it_is_used(place: Place) -> None:
    import base64
    import json

    user = place.registry.get_user("ann")
    token = place.registry.list_tokens("ann")[0]
    assert token.user_id == user.id
    for until, status in ((time.time() + 3600, 200), (time.time() - 1, 303)):
        secret = place.registry.begin_session(token.id, 3600)
        data = base64.b64encode(json.dumps({"sid": secret, "csrf": "x", "until": until}).encode())
        signed = itsdangerous.TimestampSigner(session_secret(place.settings)).sign(data).decode()
        cookies = {COOKIE: signed}
        assert httpx.get(f"{place.address}/app", headers=HTML, cookies=cookies).status_code == status


@pytest.mark.parametrize(
    ("target", "ours"),
    [
        ("/app", True),
        ("/owner/audit?dataset=pets", True),
        ("https://evil.example/", False),
        ("//evil.example/app", False),
        ("/\\evil.example", False),
        ("/app\\..", False),
        ("/app\n", False),
        ("/logout", False),
        ("", False),
    ],
)
def test_after_the_login_one_goes_on_to_pages_of_ours_only(place: Place, target: str, ours: bool) -> None:
    assert is_ours(target) is ours
    answer = Visitor(place).log_in(place.tokens["ann"], target)
    assert answer.headers["location"] == (target if ours else "/app")


def test_without_a_session_every_page_leads_to_the_login(place: Place) -> None:
    visitor = Visitor(place)
    for path in paths("GET"):
        answer = visitor.get(path)
        assert answer.status_code == 303, path
        assert answer.headers["location"].startswith("/?next="), path


def test_every_form_takes_a_csrf_token(place: Place) -> None:
    visitor = Visitor(place, "root")
    grants, right = len(place.registry.list_grants()), visitor.csrf()
    forms = [*paths("POST"), "/logout", "/login"]
    assert len(forms) > 15
    for path in forms:
        for csrf in ("", right[:-1]):
            if path == "/app/upload":
                answer = visitor.client.post(path, data={"csrf": csrf}, files={"file": ("a.png", b"x")})
            else:
                answer = visitor.post(path, csrf=csrf, text="x", reason="x", note="x")
            assert answer.status_code == 403, path
            assert "was not sent by a page of this session" in answer.text
    assert Visitor(place, "ann").post("/logout", csrf=visitor.csrf()).status_code == 403  # another session's
    assert len(place.registry.list_grants()) == grants


def test_the_csrf_token_of_an_upload_comes_before_its_file(place: Place) -> None:
    visitor = Visitor(place, "ann")
    body = (
        '--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\nx\r\n'
        f'--b\r\nContent-Disposition: form-data; name="csrf"\r\n\r\n{visitor.csrf()}\r\n--b--\r\n'
    )
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert visitor.client.post("/app/upload", content=body, headers=headers).status_code == 403


def test_a_user_opens_no_page_of_owners_and_an_owner_none_of_operators(place: Place) -> None:
    ann, olga = Visitor(place, "ann"), Visitor(place, "olga")
    for path in paths("GET", pages_owner, pages_records, pages_operator):
        answer = ann.get(path)
        assert answer.status_code == 403, path
        assert "Not allowed" in answer.text
    for path in paths("GET", pages_operator):
        assert olga.get(path).status_code == 403
    csrf = ann.csrf()
    for path in paths("POST", pages_owner, pages_operator):
        assert ann.post(path, csrf=csrf, text="x", note="x", name="x", role="operator").status_code == 403, path
    csrf = olga.csrf()
    for path in paths("POST", pages_operator):
        assert olga.post(path, csrf=csrf, name="x", role="operator").status_code == 403, path


def test_what_is_anothers_is_not_found(place: Place) -> None:
    mine = place.registry.create_request(place.registry.get_user("ann").id, "upload", None, "secret.zip")
    bob, otto = Visitor(place, "bob"), Visitor(place, "otto")
    for path in (f"/app/restorations/{mine}", f"/app/restorations/{mine}/archive"):
        answer = bob.get(path)
        assert answer.status_code == 404
        assert "secret.zip" not in answer.text
    assert bob.post(f"/app/restorations/{mine}/cancel").status_code == 404
    assert bob.post("/app/grants/1/renew", reason="x").status_code == 404
    assert otto.get("/owner/datasets/pets").status_code == 404
    assert otto.post("/owner/grants/1/revoke").status_code == 404
    assert otto.post("/owner/datasets/pets/terms", text="mine now").status_code == 404
    assert otto.get("/owner/audit?dataset=pets").status_code == 404
    assert "pets" not in otto.get("/owner/audit").text
    place.registry.cancel_request(mine)


def test_errors_are_pages_for_people_and_json_for_programs(place: Place) -> None:
    visitor = Visitor(place, "ann")
    page = visitor.get("/nowhere")
    assert page.status_code == 404
    assert page.headers["content-type"].startswith("text/html")
    assert "There is" not in page.text
    assert page.headers["x-request-id"] in page.text
    for path, headers in (("/nowhere", {"Accept": "*/*"}), ("/api/v1/nowhere", HTML)):
        assert visitor.client.get(path, headers=headers).json()["error"] == "NotFound"
    assert visitor.get("/app/restorations?state=odd").status_code == 422
    assert "Go back and correct it." in visitor.get("/app/restorations?state=odd").text
    answer = visitor.post("/app/datasets/pets/ask", reason="x", days="many")
    assert answer.status_code == 422
    assert "Days: &#39;many&#39; is no whole number." in answer.text


def test_pages_are_kept_by_nobody_and_load_from_here_only(place: Place) -> None:
    answer = Visitor(place, "ann").get("/app")
    assert answer.headers["cache-control"] == "no-store"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy


def test_the_secret_is_made_once_and_is_private(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(session_secret(settings))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found[0]) >= 64
    path = settings.home_path("gateway.secret")
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["gateway.secret"]
    given = SecretStr("given " * 6)
    assert session_secret(Settings(home=tmp_path / "home", gateway_secret=given)) == given.get_secret_value()


def test_a_grant_that_ended_is_told_apart_from_one_that_begins(place: Place) -> None:
    name = f"tim-{uuid4().hex[:6]}"
    place.tokens[name] = place.registry.add_user(name)
    place.registry.grant(name, "cells", starts=utc_now() + timedelta(days=3))
    assert "not begun" in Visitor(place, name).get("/app").text
