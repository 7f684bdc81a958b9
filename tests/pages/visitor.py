"""A visitor without a browser: what is sent is under the test's control, to the byte."""

import re

import httpx

from tests.pages.place import Place

HTML = {"Accept": "text/html"}


class Visitor:
    """Somebody who is logged in (or not), with a cookie jar."""

    def __init__(self, place: Place, name: str = "", **headers: str) -> None:
        self.client = httpx.Client(base_url=place.address, headers=HTML | headers, timeout=120)
        if name:
            answer = self.log_in(place.tokens[name])
            assert answer.status_code == 303, answer.text

    def log_in(self, token: str, next: str = "") -> httpx.Response:
        """Through the form."""
        self.client.get("/")
        return self.post("/login", csrf=self.csrf("/"), token=token, next=next)

    def csrf(self, path: str = "/app") -> str:
        """The CSRF token of the session."""
        found = re.search(r'name="csrf" value="([^"]+)"', self.client.get(path, follow_redirects=True).text)
        assert found is not None
        return found[1]

    def get(self, path: str) -> httpx.Response:
        """A page."""
        return self.client.get(path)

    def post(self, path: str, csrf: str | None = None, **fields: str) -> httpx.Response:
        """A form, with the right CSRF token unless one is given."""
        return self.client.post(path, data={"csrf": self.csrf() if csrf is None else csrf, **fields})
