"""What several commands share: options, and the object store for as long as a command needs it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from storage.objects import ObjectStore
    from tasks.params import Params
    from tasks.protect_checks import Readable

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Another value for a parameter; dots lead down. Repeatable."),
]


def parse_sets(values: list[str] | None) -> dict[str, Any]:
    """`["a.b=1", "c=x"]` as `{"a": {"b": 1}, "c": "x"}`; values are read as YAML, as in params.yaml.

    Raises:
        UsageError: a value is not KEY=VALUE, or is no YAML.
    """
    import yaml

    from storage.errors import UsageError
    from tasks.params import deep_merge

    merged: dict[str, Any] = {}
    for text in values or []:
        name, equals, value = text.partition("=")
        if not equals or not all(name.split(".")):
            raise UsageError(f"--set {text} is not KEY=VALUE.", "As in: --set exact.set.amplitude=10")
        try:
            nested: Any = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"--set {text}: the value can not be read.", "Quote it as in YAML.") from error
        for part in reversed(name.split(".")):
            nested = {part: nested}
        merged = deep_merge(merged, nested)
    return merged


def params_for(dataset: str, over: dict[str, Any]) -> Params:
    """A data set's parameters, with other values laid over them.

    A name that params.yaml does not know is someone's own folder of images, and has the parameters of `imagefolder`.

    Raises:
        ParameterError: a value is unknown or out of range, or params.yaml can not be read.
    """
    from pydantic import ValidationError

    from flows.environment import PROJECT
    from storage.errors import ParameterError
    from tasks.params import PARAMS_FILE, deep_merge, known_datasets, load_params
    from tasks.params import Params as Model

    path = PARAMS_FILE if PARAMS_FILE.exists() else PROJECT / PARAMS_FILE
    params = load_params(dataset if dataset in known_datasets(path) else "imagefolder", path)
    try:
        return Model.model_validate(deep_merge(params.model_dump(), {"dataset": dataset, **over}))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ParameterError(f"{where}: {first['msg']} (given: {first['input']!r}).", f"See {path}.") from error


@contextmanager
def store_of(kind: str) -> Iterator[ObjectStore]:
    """The public or private bucket; the embedded server is started for this long when it does not run.

    Raises:
        ServiceError: the embedded server does not start.
    """
    from storage.objects import open_store
    from storage.settings import settings

    with object_store():
        yield open_store(settings(), "public" if kind == "public" else "private")


def object_store() -> AbstractContextManager[None]:
    """See that the embedded object store runs for the length of a block, unless a setting names another one."""
    from flows.services import object_store as running

    return running()


@contextmanager
def arriving(place: ObjectStore, name: str) -> Iterator[Readable]:
    """A shard as it comes, for as long as the block lasts. Raises NotFound at the first byte where there is none."""
    with closing(cast("Generator[bytes, None, None]", place.stream(name, block=1 << 16))) as blocks:
        yield _Arriving(blocks)


class _Arriving:
    """Blocks of bytes, read as a file is."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._rest = blocks, b""

    def read(self, size: int, /) -> bytes:
        """The next bytes, fewer than asked for at the end only."""
        while len(self._rest) < size and (block := next(self._blocks, b"")):
            self._rest += block
        found, self._rest = self._rest[:size], self._rest[size:]
        return found


def dataset_of(variant: Path, dataset: str | None) -> str:
    """The data set's name: the given one, else the manifest's.

    Raises:
        CorruptManifest: the folder is no variant.
    """
    if dataset is not None:
        return dataset
    from storage.manifest import read_manifest

    return read_manifest(variant).dataset
