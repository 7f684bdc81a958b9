"""What a request's files are called, and what the private bucket holds of it.

    requests/ID/input-000000.tar ...   what was handed in: shards whose sample keys are numbers, 00000000, 00000001 ...
    requests/ID/input.json             `RequestIndex`: which number is which file, and what was refused on the way in
    requests/ID/attempt-1/result-000000.tar ...   what was restored: the same numbers, result N from input N
    requests/ID/attempt-1/report.json             `RequestReport`: digests of the results, and why what is missing is

Each attempt at a request writes below a folder of its own, so one that was thought dead and goes on overwrites nothing
of its successor's. The report says which attempt each result is of; the registry says which report counts.

Names that a requester chose never become object keys, tar members or paths on the way: only numbers travel, and the
index turns them back into names when the results are written, after checking every name again.
"""

import re
import unicodedata
from collections import Counter
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from storage.errors import CorruptManifest
from storage.names import DATASET_PATTERN, VERSION_PATTERN
from storage.shards import ShardInfo

INDEX_NAME = "input.json"
REPORT_NAME = "report.json"
REFUSED_NAME = "refused.csv"
UPLOADS_ROOT = "uploads"
NAMED_REFUSALS = 10_000
"""A report names so many refused images and counts the others: it is read as a whole, however many were asked for."""
RESERVED = (REPORT_NAME, REFUSED_NAME, "manifest.json")
"""Files that the results' folder holds itself."""


def is_presentable(name: str) -> bool:
    """Whether a name is free of control characters, line breaks and bytes that are not UTF-8."""
    return name.isprintable() or not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name)


def name_fault(name: str) -> str | None:
    """Why `name` can not be the relative name of a result, or None when it can.

    Names are parts joined by `/`, as on disk. A good one stays inside the folder it is joined to, on every system.
    """
    parts = name.split("/")
    if not is_presentable(name):
        return "its name holds control characters or is not UTF-8"
    if name.startswith("/") or ".." in parts or "\\" in name:
        return "its name leads out of the folder"
    if "" in parts or "." in parts or len(name) > 1024 or any(len(part.encode()) > 255 for part in parts):
        return "its name is not usable as a file name"
    if name in RESERVED:
        return "its name is taken by the report"
    return None


def _safe_name(name: str) -> str:
    fault = name_fault(name)
    if fault:
        raise ValueError(fault)
    return name


def _shard_file(name: str) -> str:
    if "/" in name or not name.lower().endswith(".tar"):
        raise ValueError("it is no file name of a shard")
    return _safe_name(name)


SafeName = Annotated[str, AfterValidator(_safe_name)]
ShardTarget = Annotated[str, AfterValidator(_shard_file)]
SampleKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,94}$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RefusedFile(_Model):
    """One file (or sample) that was not restored: its name, the class of the error, and the reason for people."""

    name: str
    error: str
    reason: str


class InputShard(_Model):
    """One input shard, and the name of the shard it came from when shard boundaries are to be kept."""

    shard: ShardInfo
    target: ShardTarget | None = None


class VariantHead(_Model):
    """What a manifest says besides its shards, so that the results can have one too."""

    dataset: str
    split: str
    classes: list[str]


class Uploaded(_Model):
    """The input shards lie in the private bucket, beside the index."""

    kind: Literal["upload"] = "upload"


class Published(_Model):
    """The input shards are those of a published version, and lie in the public bucket under their digests."""

    kind: Literal["published"] = "published"
    dataset: Annotated[str, Field(pattern=f"^{DATASET_PATTERN}$")]
    version: Annotated[str, Field(pattern=f"^{VERSION_PATTERN}$")]

    @property
    def source(self) -> str:
        """As people write it: DATASET@VERSION."""
        return f"{self.dataset}@{self.version}"


class Local(_Model):
    """The input shards lie in a folder of this machine, under the names of their targets."""

    kind: Literal["variant"] = "variant"
    source: str


Origin = Annotated[Uploaded | Published | Local, Field(discriminator="kind")]


class RequestIndex(_Model):
    """`input.json`: where the input lies and what it is called.

    `names` gives the name of each sample key; a key that is not in it is its own name. `keys` are the samples that are
    wanted (None: all). Layout `files`: names are relative file names, and the results are loose PNGs under them. Layout
    `shards`: names are sample keys, and the results are shards again, called like the input shards' targets.
    """

    format: Literal["dmcp-request/1"] = "dmcp-request/1"
    origin: Origin = Uploaded()
    layout: Literal["files", "shards"]
    shards: list[InputShard]
    keys: list[SampleKey] | None = None
    names: dict[SampleKey, SafeName] = {}
    refused: list[RefusedFile] = []
    variant: VariantHead | None = None

    @property
    def images(self) -> int:
        """How many images are to be restored; files refused on the way in are not counted."""
        return sum(entry.shard.samples for entry in self.shards) if self.keys is None else len(self.keys)

    @model_validator(mode="after")
    def _consistent(self) -> "RequestIndex":
        for number, entry in enumerate(self.shards):
            if entry.shard.name != input_name(number):
                raise ValueError(f"shard {number} is not called {input_name(number)}")
            if (self.layout == "shards") != (entry.target is not None):
                raise ValueError("targets are for shards, and for all of them")
        if self.layout == "files" and len(set(self.names.values())) != len(self.names):
            raise ValueError("two samples have the same name")
        targets = [entry.target for entry in self.shards if entry.target]
        if len(set(targets)) != len(targets):
            raise ValueError("two shards have the same target")
        return self


class RequestReport(_Model):
    """`report.json`: what became of a request.

    In the bucket `refused` names sample keys, `results` are the result shards, and `attempts` say which attempt put
    each. The requester's copy names files instead, and what was refused on the way in too. Of many refused images the
    first are named; `unnamed` says how many more there are of each class of error.
    """

    format: Literal["dmcp-report/1"] = "dmcp-report/1"
    request_id: str
    images: int
    restored: int
    results: list[ShardInfo] = []
    attempts: dict[str, int] = {}
    refused: list[RefusedFile]
    # Left out where nothing is: releases before this one take no field that they do not know.
    unnamed: dict[str, Annotated[int, Field(ge=1)]] = Field(default={}, exclude_if=lambda counts: not counts)

    @property
    def refusals(self) -> int:
        """How many images were refused, named or not."""
        return len(self.refused) + sum(self.unnamed.values())

    @property
    def kinds(self) -> dict[str, int]:
        """How many images were refused by class of error, named or not; the most first."""
        return dict((Counter(file.error for file in self.refused) + Counter(self.unnamed)).most_common())

    @model_validator(mode="after")
    def _consistent(self) -> "RequestReport":
        if any(not re.fullmatch(r"result-[0-9]{6}\.tar", result.name) for result in self.results):
            raise ValueError("a result has another name than result-NNNNNN.tar")
        return self


def input_name(number: int) -> str:
    """File name of an input shard."""
    return f"input-{number:06d}.tar"


def result_name(number: int) -> str:
    """File name of the result of input shard `number`."""
    return f"result-{number:06d}.tar"


def upload_key(user_id: int, upload_id: str) -> str:
    """Object key of an upload to a presigned address. The user's id is part of it: nobody can name another's."""
    return f"{UPLOADS_ROOT}/{user_id}/{upload_id}"


def request_key(request_id: str, name: str) -> str:
    """Object key, in the private bucket, of one of a request's files."""
    return f"requests/{request_id}/{name}"


def attempt_key(request_id: str, name: str, attempt: int) -> str:
    """Object key of what an attempt at a request wrote; attempt 0: before attempts had folders of their own."""
    return request_key(request_id, f"attempt-{attempt}/{name}" if attempt else name)


def result_key(report: RequestReport, info: ShardInfo) -> str:
    """Object key of one of a report's results."""
    return attempt_key(report.request_id, info.name, report.attempts.get(info.name, 0))


def attempt_of(key: str) -> int:
    """The attempt that wrote the object of this key; 0: none in particular."""
    found = re.fullmatch(r"requests/[^/]+/attempt-([0-9]{1,9})/[^/]+", key)
    return int(found[1]) if found else 0


def parse_index(data: bytes) -> RequestIndex:
    """Read `input.json`. Raises CorruptManifest when it is none, or holds a name that is not safe."""
    try:
        return RequestIndex.model_validate_json(data)
    except ValidationError as error:
        raise _corrupt(INDEX_NAME, error) from None


def parse_report(data: bytes) -> RequestReport:
    """Read `report.json`. Raises CorruptManifest when it is none."""
    try:
        return RequestReport.model_validate_json(data)
    except ValidationError as error:
        raise _corrupt(REPORT_NAME, error) from None


def _corrupt(name: str, error: ValidationError) -> CorruptManifest:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"][:2]) or "the file"
    return CorruptManifest(f"The request's {name} is not valid ({where!a}: {first['msg']}).", "Make the request again.")
