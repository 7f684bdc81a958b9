"""Parts of the client by themselves: what it reads of a stream, what it packs, what it makes of an error."""

import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.client.connection import Connection
from flows.client.events import parse_events
from flows.client.packing import fingerprint, pack
from flows.client.problems import error_of, failure, printable, retry_after
from flows.client.transfer import Source, check_name
from storage import errors
from storage.errors import DmcpError, GrantExpired, InputError, NotFound, ServiceError, TooManyRequests
from storage.files import sha256_file
from storage.shards import read_shard
from tasks.request_index import name_fault
from tasks.request_pack import pack_source

PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)

texts = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1, max_size=30)
names = st.from_regex(r"[a-z]{1,8}", fullmatch=True)


@given(st.lists(st.tuples(names, st.lists(texts, min_size=1, max_size=3)), max_size=6), st.data())
def test_events_are_the_same_however_the_stream_is_cut(
    events: list[tuple[str, list[str]]], data: st.DataObject
) -> None:
    end = data.draw(st.sampled_from(["\n", "\r\n"]))
    stream = ": ping" + end + end
    for name, lines in events:
        stream += f"event: {name}{end}" + "".join(f"data: {line}{end}" for line in lines) + end + f": ping{end}{end}"
    raw = stream.encode() + data.draw(st.sampled_from([b"", b"event: done\ndata: cut o"]))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    blocks = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    assert list(parse_events(blocks)) == [(name, "\n".join(lines).encode()) for name, lines in events]


def test_a_stream_that_never_ends_an_event_is_left() -> None:
    assert list(parse_events(b"data: " + bytes(1 << 16) for _ in range(100))) == []


parts = st.from_regex(r"[a-zA-Z0-9 äöü._-]{1,12}", fullmatch=True)
paths = st.lists(parts, min_size=1, max_size=3).map("/".join)


@settings(max_examples=40)
@given(st.dictionaries(paths, st.sampled_from([PNG, PNG + b"x", b"text", b"GIF89a"]), min_size=1, max_size=8))
def test_a_folder_and_its_tar_are_the_same_to_the_gateway(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]
) -> None:
    files = {name: content for name, content in files.items() if not name_fault(name) and not name.endswith(".tar")}
    folder = tmp_path_factory.mktemp("in") / "source"
    folder.mkdir()
    for name, content in files.items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except OSError:
            continue  # a file and a folder of one name
    works = [tmp_path_factory.mktemp("work") for _ in range(4)]
    try:
        expected = pack_source(folder, works[0]).index
    except InputError:
        with pytest.raises(InputError):
            pack(folder, works[1])
        return
    parcel, again = pack(folder, works[1]), pack(folder, works[2])
    assert parcel.sha256 == again.sha256 == sha256_file(parcel.path)
    index = pack_source(parcel.path, works[3], shown=parcel.name).index
    assert (index.layout, list(index.names.values())) == (expected.layout, list(expected.names.values()))
    assert {(r.name, r.reason) for r in [*index.refused, *parcel.refused]} == {
        (r.name, r.reason) for r in expected.refused
    }


def test_a_folder_of_shards_is_the_same_to_the_gateway(small_variant: Path, tmp_path: Path) -> None:
    expected = pack_source(small_variant, tmp_path / "a").index
    parcel = pack(small_variant, tmp_path)
    assert parcel.refused == []
    assert pack_source(parcel.path, tmp_path / "b", shown=parcel.name).index == expected


def test_a_shard_that_is_cut_off_inside_a_tar_is_not_read_beyond_its_end(small_variant: Path, tmp_path: Path) -> None:
    first, second, _ = sorted(small_variant.glob("*.tar"))
    samples = read_shard(first)
    whole = [len(sample.png) for sample in samples]
    cut = first.read_bytes()[: 512 + whole[0] + 700]  # within the headers after the first image
    with tarfile.open(tmp_path / "outer.tar", "w") as outer:
        for name, data in ((first.name, cut), (second.name, second.read_bytes())):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            outer.addfile(info, io.BytesIO(data))
    packed = pack_source(tmp_path / "outer.tar", tmp_path / "work")
    targets = {entry.target: entry.shard.samples for entry in packed.index.shards}
    assert targets == {first.name: 1, second.name: len(read_shard(second))}
    assert first.name in {refusal.name for refusal in packed.index.refused}


def test_what_can_not_travel_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "good.png").write_bytes(PNG)
    (folder / "a\nb.png").write_bytes(PNG)
    (folder / "report.json").write_text("{}")
    (folder / "gone.png").symlink_to("nowhere")
    (folder / ".DS_Store").write_bytes(b"x")
    os.mkfifo(folder / "pipe.png")
    parcel = pack(folder, tmp_path)
    with tarfile.open(parcel.path) as tar:
        assert tar.getnames() == ["good.png"]
    assert {r.name for r in parcel.refused} == {"a\\nb.png", "report.json", "gone.png", "pipe.png"}


def test_a_fingerprint_tells_changes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    before = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == before
    os.utime(tmp_path / "a.png", ns=(1, 1))
    assert fingerprint(tmp_path) != before


def test_a_file_that_changes_while_it_is_sent_is_not_sent_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(1000))
    digest = sha256_file(path)
    for content in (bytes(999) + b"x", bytes(1001), bytes(10)):
        path.write_bytes(content)
        source = Source(path, 1000, digest, lambda size: None)
        sent = io.BytesIO()
        with pytest.raises(InputError):
            sent.writelines(source.body())
        assert len(sent.getvalue()) < 1000


def _answer(**said: object) -> bytes:
    return json.dumps(said).encode()


def test_every_error_of_the_tree_comes_back_as_itself() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DmcpError)]
    for kind in kinds:
        error = error_of(400, {}, _answer(error=kind.__name__, what="It.", cure="Do."), "x")
        assert (type(error), error.what, error.cure, error.exit_code) == (kind, "It.", "Do.", kind.exit_code)
        assert type(failure(f"{kind.__name__}: it")) is kind


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (502, b"<html>bad gateway</html>", ServiceError),
        (404, b"", NotFound),
        (418, b"[]", errors.UsageError),
        (500, _answer(error="KeyboardInterrupt", what="x"), ServiceError),
        (403, _answer(error="os", what=5), errors.NotAuthorised),
    ],
)
def test_answers_of_others_are_errors_too(status: int, body: bytes, kind: type[DmcpError]) -> None:
    assert type(error_of(status, {}, body, "https://x")) is kind


@given(st.text(max_size=200))
def test_nothing_of_a_gateways_moves_the_cursor(text: str) -> None:
    error = error_of(400, {}, _answer(error="InputError", what=text, cure=text), "x")
    for shown in (error.what, error.cure, printable(text), failure(text).what):
        assert all(c.isprintable() or c == "\n" for c in shown)


def test_retry_after() -> None:
    assert retry_after({"retry-after": "7"}) == 7
    assert retry_after({}) is None
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    limited = error_of(429, {"retry-after": "9"}, b"", "x")
    assert isinstance(limited, TooManyRequests) and limited.retry_after == 9
    assert isinstance(failure("GrantExpired: it ended"), GrantExpired)


@pytest.mark.parametrize(
    "name", ["../result-000000.tar", "result-00000.tar", "result-０００００0.tar", "report.json", ""]
)
def test_a_gateway_names_no_file_of_ours(name: str) -> None:
    with pytest.raises(ServiceError):
        check_name(name)
    check_name("result-000012.tar")


def test_a_store_on_the_gateways_own_machine_is_not_looked_for_here() -> None:
    far, near = Connection("https://dmcp.example", "t"), Connection("http://127.0.0.1:1", "t")
    assert not far.may_reach("http://127.0.0.1:9000/x") and not far.may_reach("http://[::1]:9000/x")
    assert far.may_reach("https://s3.example/x") and near.may_reach("http://127.0.0.1:9000/x")
