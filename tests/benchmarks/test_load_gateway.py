import io
import json
import math
import zipfile
from pathlib import Path

import httpx

from benchmarks.load_gateway import Load, Measured, Service, markdown, percentile, summary
from benchmarks.pictures import Pictures
from storage.shards import Sample


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(i) for i in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50.0, 95.0, 99.0, 100.0]
    assert percentile([7.0], 0.99) == 7.0
    assert math.isnan(percentile([], 0.5))


def test_what_goes_wrong_is_counted_and_shown() -> None:
    measured = Measured()
    measured.seconds["GET /me"] += [0.01, 0.02, 0.03]
    measured.seconds["POST /restorations/upload"] += [1.0]
    measured.failed("GET /me", "503 ServiceError")
    report = summary(measured, 2.0, {"seconds": 2}, "sample")
    assert report["reads"] == {"n": 3, "errors": 1, "p50": 20.0, "p95": 30.0, "p99": 30.0, "max": 30.0}
    assert (report["errors"], report["messages"]) == (1, ["GET /me: 503 ServiceError"])
    assert "| all reads | 3 | 1 | 20 | 30 | 30 | 30 |" in markdown(report)


def archive(files: dict[str, bytes], refused: list[str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        for name, content in files.items():
            made.writestr(name, content)
        made.writestr("report.json", json.dumps({"refused": [{"name": name} for name in refused]}))
    return buffer.getvalue()


def test_an_image_that_is_another_or_missing_or_too_many_is_wrong() -> None:
    clean = [Sample(f"{i:08d}", bytes([i]), None) for i in range(3)]
    service = Service("http://127.0.0.1:9", Pictures("sample", Path(), clean, clean), [], [])
    names = {"a.png": clean[0].key, "b.png": clean[1].key}
    right = {"a.png": clean[0].png, "b.png": clean[1].png}
    whole = (right, ["foreign.png"])
    cases = {
        0: [whole],
        1: [(right | {"b.png": b"other"}, ["foreign.png"]), ({"a.png": right["a.png"]}, ["foreign.png"])],
        2: [(right | {"foreign.png": b"1", "more.png": b"2"}, [])],
    }
    for wrong, archives in cases.items():
        for files, refused in archives:
            load = Load(service, httpx.AsyncClient(), 1)
            assert load._check(archive(files, refused), names) == (wrong == 0)
            assert load.measured.wrong == wrong
    load = Load(service, httpx.AsyncClient(), 1)
    assert not load._check(archive(right, []), names), "the foreign image was not refused"
