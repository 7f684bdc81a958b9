"""Undoing the carrier without the key: where the bits lie stands in the header, in clear.

Profile `paper`: the bits that carry are set to the middle of their range. Profile `exact`: reversible expansion is
contracted, which gives the perturbed image back bit for bit, but for the lowest bits that the header replaced.
"""

import numpy as np
from numpy.typing import NDArray

from storage.errors import DmcpError
from tasks.method.carriers import LsbCarrier, read_headers
from tasks.method.exact import Embedding
from tasks.method.expansion import contract
from tasks.method.header import PROFILE_EXACT, PROFILE_PAPER, Header
from tasks.method.known import parse_header
from tasks.method.paper import Geometry

Images = NDArray[np.uint8]


def headers_of(images: Images) -> list[Header | None]:
    """The header of each image, uint8 [N, H, W, 3]; None where there is none."""
    found: list[Header | None] = []
    for raw in read_headers(images):
        try:
            found.append(parse_header(raw))
        except DmcpError:
            found.append(None)
    return found


def strip_carrier(images: Images) -> Images:
    """The images as they were before the carrier wrote into them, as far as anybody can tell; uint8 [N, H, W, 3].

    Images without a header stay as they are.
    """
    headers, result = headers_of(images), np.array(images, order="C")
    room = images[0].size if len(images) else 0
    for planes in (1, 2, 3):
        carrier = LsbCarrier(planes)
        rows = _rows(headers, PROFILE_PAPER, lambda h, p=planes: Geometry.of(h).planes == p)  # type: ignore[misc]
        if rows:
            sizes = np.array([min(_bytes(headers[i]), room * planes // 8) for i in rows], np.int64)
            result[rows] = carrier.clear(images[rows], sizes, middle=True)
    rows = _rows(headers, PROFILE_EXACT, lambda h: Embedding.of(h).threshold > 0 and 8 * h.payload_bytes <= room)
    if rows:
        settings = [Embedding.of(h) for i in rows if (h := headers[i]) is not None]
        thresholds = np.array([s.threshold for s in settings], np.int64)
        extents = np.array([s.extent for s in settings], np.int64)
        sizes = np.array([_bytes(headers[i]) for i in rows], np.int64)
        looks, payloads = contract(images[rows], thresholds, extents, sizes)
        sound = np.array([p is not None for p in payloads])
        result[np.array(rows)[sound]] = looks[sound]
    return result


def _rows(headers: list[Header | None], profile: int, wanted) -> list[int]:  # type: ignore[no-untyped-def]
    return [i for i, h in enumerate(headers) if h is not None and h.profile == profile and wanted(h)]


def _bytes(header: Header | None) -> int:
    return header.payload_bytes if header is not None else 0
