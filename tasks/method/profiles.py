"""Profiles: complete ways to hide a clean image in a perturbed one and to get it back. Pure: arrays in, arrays out.

A profile works on images of one shape at a time. `fit` finds the Sequence and the look, without any key; `carry` seals
it and puts it into the pixels; `recover` undoes both. Which profile made an image stands in its header.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from storage.errors import Refused
from tasks.method.header import Header
from tasks.method.seal import DataKey

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Fitted:
    """One image after `fit`: its transformed look and what is needed to undo it.

    Attributes:
        look: uint8 [h, w, 3], before the carrier wrote into it.
        sequence: the Sequence, coded, in clear; never published.
        rung: which step of the ladder of fallbacks fitted, "configured" for the first.
        planes, pairing, step, classes, block: what the header will say.
    """

    look: Images
    sequence: bytes
    rung: str
    block: int
    planes: int
    pairing: int
    step: int
    classes: int


@dataclass(frozen=True)
class LeftOut:
    """One image for which nothing on the ladder worked: it is reported and not published."""

    reason: str


class Profile(Protocol):
    """The steps of one profile."""

    name: str
    version: int

    def fit(self, clean: Images, perturbed: Images) -> list[Fitted | LeftOut]:
        """Give each clean image the look of its perturbed one; uint8 [n, h, w, 3] both."""

    def carry(self, fitted: list[Fitted], clean: Images, ids: list[bytes], key: DataKey) -> Images:
        """Seal and carry: the protected images, each already restored once and compared with its clean image."""

    def recover(self, images: Images, headers: list[Header], key: DataKey) -> list[Images | Refused]:
        """The recovered images (uint8 [h, w, 3]), or for each why not."""

    def error_bound(self, header: Header) -> int:
        """Largest difference of a recovered sample from the clean one."""

    def payload_bytes(self, fitted: Fitted) -> int:
        """Bytes that travel sealed in the image."""

    def capacity_bytes(self, fitted: Fitted) -> int:
        """Bytes that its carrier could take."""
