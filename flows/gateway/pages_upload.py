"""A form with files, read as it comes: fields are checked before any file, and no file is held in memory.

incoming = Upload(request, seconds=60)
path, shown = await take_files(incoming, desk, limit)      # one file as it is, several as one zip
incoming.form.text("dataset")
"""

import zipfile
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from anyio import to_thread
from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from flows.gateway.intake import too_large
from flows.gateway.pages_forms import FIELDS, Form, check_form
from flows.gateway.pages_views import counted
from flows.gateway.transfers import Pace
from flows.gateway.workspace import Desk
from storage.errors import InputError
from tasks.request_index import name_fault

FILES = 2000
"""PNGs that may be chosen at once; more go into a zip first."""

BLOCK = 1 << 20
FIELD_BYTES = 64 << 10


@dataclass
class _Part:
    name: str
    filename: str | None


@dataclass
class UploadedFile:
    """One file of the form, as it comes: its name, and its bytes."""

    filename: str
    pieces: AsyncIterator[bytes]


class Upload:
    """A form with files. Its fields come first, the CSRF token among them: it is checked before any byte of a file.

    async for file in upload.files():
        async for piece in file.pieces: ...       # all of it, before the next file
    """

    def __init__(self, request: Request, seconds: float) -> None:
        """Begin.

        Args:
            request: the call.
            seconds: how long `PACE_BYTES` of it may take to come.
        """
        self.request = request
        self.values: dict[str, str] = {}
        self._pace = Pace(seconds)
        self._stream = aiter(request.stream())
        self._events: deque[tuple[str, Any]] = deque()
        self._headers: dict[bytes, bytes] = {}
        self._header: list[bytes] = [b"", b""]
        self._whole = False
        kind, options = parse_options_header(request.headers.get("content-type", ""))
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not boundary:
            raise InputError("The form was sent without a file.", "Choose a file and send it again.")
        self._parser = MultipartParser(boundary, self._callbacks())

    @property
    def form(self) -> Form:
        """The fields that have come so far."""
        return Form(self.values)

    async def files(self) -> AsyncIterator[UploadedFile]:
        """The files, one after the other.

        Raises:
            Forbidden: the CSRF token is missing or wrong.
            InputError: the form is broken, or ended before its end.
        """
        field: _Part | None = None
        async for event, value in self._all():
            if event == "begin" and value.filename is not None:
                check_form(self.request, self.values)
                pieces = self._pieces()
                yield UploadedFile(value.filename, pieces)
                async for _ in pieces:  # what the reader left
                    pass
            elif event == "begin":
                field = value
                if len(self.values) >= FIELDS:
                    raise InputError("The form has too many fields.", "Load the page again.")
                self.values[field.name] = ""
            elif event == "data" and field is not None:
                self.values[field.name] += value.decode("utf-8", "replace").replace("\0", "")
                if len(self.values[field.name]) > FIELD_BYTES:
                    raise InputError("A field of the form is too long.", "Load the page again.")
        check_form(self.request, self.values)

    async def _pieces(self) -> AsyncIterator[bytes]:
        async for event, value in self._all():
            if event == "end":
                return
            yield value

    async def _all(self) -> AsyncIterator[tuple[str, Any]]:
        while True:
            while self._events:
                event = self._events.popleft()
                yield event
            try:
                async with self._pace.waiting():
                    chunk = await anext(self._stream, b"")
                self._pace.came(len(chunk))
                self._parser.write(chunk)
            except TimeoutError:
                raise InputError(f"Too little came for {self._pace.seconds:.0f} s.", "Send it again.") from None
            except (ClientDisconnect, FormParserError):
                raise _broken() from None
            if not chunk:
                if not self._whole:
                    raise _broken()
                return

    def _callbacks(self) -> Any:
        def header(which: int) -> Any:
            def more(data: bytes, start: int, end: int) -> None:
                self._header[which] += data[start:end]

            return more

        def header_end() -> None:
            self._headers[self._header[0].lower()] = self._header[1]
            self._header = [b"", b""]

        def whole() -> None:
            self._whole = True

        def begin() -> None:
            _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
            filename = options.get(b"filename")
            name = options.get(b"name", b"").decode("utf-8", "replace")
            shown = None if filename is None else filename.decode("utf-8", "replace")
            self._events.append(("begin", _Part(name, shown)))

        return {
            "on_part_begin": self._headers.clear,
            "on_header_field": header(0),
            "on_header_value": header(1),
            "on_header_end": header_end,
            "on_headers_finished": begin,
            "on_part_data": lambda data, start, end: self._events.append(("data", data[start:end])),
            "on_part_end": lambda: self._events.append(("end", None)),
            "on_end": whole,
        }


def _broken() -> InputError:
    return InputError("The upload broke off.", "Send it again.")


# --- onto the desk ---------------------------------------------------------------------------------------------------


async def take_files(incoming: Upload, desk: Desk, limit: int) -> tuple[Path, str]:
    """Put the files of a form on the desk: one as it is, several as one zip. Where it lies, and what to call it."""
    store = _Files(desk, limit)
    try:
        async for file in incoming.files():
            if file.filename:
                await store.add(file)
    finally:
        await to_thread.run_sync(store.close)
    return store.done()


class _Files:
    """The files of a form, written one after the other.

    The first is written as it is. When a second comes, they go on into a zip: the first one is moved there.
    """

    def __init__(self, desk: Desk, limit: int) -> None:
        self.desk = desk
        self.left = self.limit = limit
        self.first: tuple[Path, str] | None = None
        self.names: set[str] = set()
        self.zip: zipfile.ZipFile | None = None

    async def add(self, file: UploadedFile) -> None:
        """Write one more. Raises TooLarge, TooManyRequests, InputError."""
        name = self._name(file.filename)
        if self.first is None:
            path = self.desk.folder / "upload"
            self.first = path, name
            with path.open("xb") as out:
                await self._copy(file, out)
            return
        if self.zip is None:
            await to_thread.run_sync(self._begin_zip)
        assert self.zip is not None
        with self.zip.open(zipfile.ZipInfo(name), "w", force_zip64=True) as out:
            await self._copy(file, out)

    def done(self) -> tuple[Path, str]:
        """Where all of it lies, and what to call it. Raises InputError when there is nothing."""
        if self.first is None:
            raise InputError("No file was chosen.", "Choose a zip, a tar or some PNGs.")
        if self.zip is None:
            return self.first
        return self._archive, counted(len(self.names), "file")

    def close(self) -> None:
        """Write the zip's directory."""
        if self.zip is not None:
            self.zip.close()

    @property
    def _archive(self) -> Path:
        return self.desk.folder / "files.zip"

    def _begin_zip(self) -> None:
        assert self.first is not None
        path, name = self.first
        self.desk.take(path.stat().st_size)
        self.zip = zipfile.ZipFile(self._archive, "x", zipfile.ZIP_STORED)
        self.zip.write(path, name)
        path.unlink()

    async def _copy(self, file: UploadedFile, out: IO[bytes]) -> None:
        pending = bytearray()
        async for piece in file.pieces:
            self.left -= len(piece)
            if self.left < 0:
                raise too_large(self.limit)
            pending += piece
            if len(pending) >= BLOCK:
                await to_thread.run_sync(self._write, out, bytes(pending))
                pending.clear()
        await to_thread.run_sync(self._write, out, bytes(pending))

    def _write(self, out: IO[bytes], data: bytes) -> None:
        self.desk.take(len(data))
        out.write(data)

    def _name(self, filename: str) -> str:
        """A name for the file, which no other one of the form has."""
        if len(self.names) >= FILES:
            raise InputError(f"More than {FILES:,} files were chosen.", "Put them into a zip first.")
        name = filename.replace("\\", "/").rpartition("/")[2][:200]
        if not name or name_fault(name):
            name = f"file-{len(self.names) + 1}"
        stem, dot, kind = name.rpartition(".")
        number = 1
        while name in self.names:
            number += 1
            name = f"{stem}-{number}{dot}{kind}"
        self.names.add(name)
        return name
