"""The profiles this release knows, by the number in a header."""

from tasks.method.exact import ExactProfile
from tasks.method.header import Header
from tasks.method.paper import PaperProfile
from tasks.method.profiles import Profile

_PROFILES: dict[int, type[PaperProfile] | type[ExactProfile]] = {p.number: p for p in (PaperProfile, ExactProfile)}


def profile_of(header: Header) -> Profile:
    """The profile that made an image, to recover it."""
    return _PROFILES[header.profile]()


def parse_header(raw: bytes) -> Header:
    """Read 27 bytes, the profile's settings among them.

    Raises:
        NotProtected: there is no header here, or a damaged one.
        UnsupportedFormat: of a version or profile that this release does not know.
    """
    header = Header.unpack(raw)
    profile_of(header).error_bound(header)  # reads the settings
    return header
