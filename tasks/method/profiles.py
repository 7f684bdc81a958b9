"""Profiles: complete ways to hide a clean image in a perturbed one and to get it back. Pure: arrays in, arrays out.

A profile works on images of one shape at a time. `fit` finds the look and what undoes it, without any key; `carry`
seals that and makes it travel with the image; `recover` undoes both. Which profile made an image stands in its header.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from storage.errors import Refused
from tasks.method.header import Header
from tasks.method.seal import DataKey

Images = NDArray[np.uint8]

LEAST_ENERGY = 6.5
"""Mean squared distance to the clean image under which a look does not count as a disguise (40 dB)."""


@dataclass(frozen=True)
class Fitted:
    """One image after `fit`; each profile adds what it needs to remember.

    Attributes:
        look: uint8 [h, w, 3], before the carrier wrote into it.
        secret: what undoes the look, coded, in clear; never published.
    """

    look: Images
    secret: bytes


@dataclass(frozen=True)
class LeftOut:
    """One image for which nothing worked: it is reported and not published."""

    reason: str


@dataclass(frozen=True)
class Carried:
    """One protected image.

    Attributes:
        image: uint8 [h, w, 3].
        how: which of the profile's ways worked, for the report.
        payload_bytes: bytes that travel sealed.
        room_bytes: bytes that the pixels could take in that way.
        spilled: the sealed payload where it does not travel in the pixels, else None.
    """

    image: Images
    how: str
    payload_bytes: int
    room_bytes: int
    spilled: bytes | None = None


@dataclass(frozen=True)
class Recovered:
    """One recovered image, uint8 [h, w, 3]; its label where that was sealed with it."""

    image: Images
    label: int | None = None


class Profile(Protocol):
    """The steps of one profile."""

    name: ClassVar[str]
    number: ClassVar[int]

    def fit(self, clean: Images, perturbed: Images) -> list[Fitted | LeftOut]:
        """Give each clean image the look of its perturbed one; uint8 [n, h, w, 3] both."""

    def carry(
        self, fitted: list[Fitted], clean: Images, labels: list[int | None], ids: list[bytes], key: DataKey
    ) -> list[Carried]:
        """Seal and carry; each result was restored once and compared with its clean image."""

    def recover(
        self, images: Images, headers: list[Header], spilled: list[bytes | None], key: DataKey
    ) -> list[Recovered | Refused]:
        """The recovered images, or for each why not; `spilled`: payloads that came beside the pixels."""

    def spills(self, header: Header) -> bool:
        """Whether the payload of this image travels beside its pixels."""

    def error_bound(self, header: Header) -> int:
        """Largest difference of a recovered sample from the clean one."""

    def describe(self, header: Header) -> str:
        """The settings in a header, for people."""
