"""Handing in a restore request: checks that it may be made, packs the input, uploads it, records the request last.

    request_id = submit_request(registry, private, token, "my-images", work=work)       # who holds a token
    request_id = hand_in(registry, private, user, path, work=work, shown="images.zip")  # who was authenticated already

Both check that the user holds a grant at all, so that nobody uploads in vain; that decides nothing: the flow that
serves the request checks again, shard by shard. A request that was cut off half-way leaves no request, and what it
uploaded is removed. An id made before (of an idempotency key) may be handed in by two processes at once: before a file
is put, the registry is asked whether there is a request of this id, and what lies there is left alone if so. Under such
an id nothing is ever removed here, since it may be the other's by now; the sweeper removes what belongs to no request.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from storage.errors import Conflict, DmcpError, NoGrant, NotFound, OutOfScope, UsageError
from storage.files import Progress, scratch_folder
from storage.objects import ObjectStore
from storage.registry import Registry, User, new_request_id
from storage.shards import ShardInfo
from storage.transfer import Meter, in_parallel
from tasks.request_index import INDEX_NAME, Published, RequestIndex, Uploaded, request_key
from tasks.request_pack import check_protected, pack_source
from tasks.request_scope import authorise_images
from tasks.request_sources import Limits
from tasks.request_variants import local_index, parse_published, published_index

TRANSFERS = 4  # files uploaded at once


def submit_request(
    registry: Registry, store: ObjectStore, token: str, source: str | Path, *, work: Path, **more: object
) -> str:
    """Hand in a restore request with a token, as `hand_in` does for its user, and return the request's id.

    Raises:
        BadToken: nobody's.
        DmcpError: as `hand_in`.
    """
    return hand_in(registry, store, registry.authenticate(token), source, work=work, **more)  # type: ignore[arg-type]


def hand_in(
    registry: Registry,
    store: ObjectStore,
    user: User,
    source: str | Path,
    *,
    work: Path,
    public: ObjectStore | None = None,
    subset: Sequence[str] | None = None,
    dataset: str | None = None,
    in_place: bool = False,
    look: bool = False,
    shard_size: int = 1000,
    limits: Limits | None = None,
    shown: str | None = None,
    request_id: str | None = None,
    progress: Progress | None = None,
) -> str:
    """Hand in a restore request of a user who is known already, and return its id.

    Args:
        registry: checks the user's grants and records the request.
        store: the private bucket; created when missing.
        user: who asks.
        source: a path that exists (folder of PNGs, folder of shards, tar, zip, one PNG), or a published version:
            `DATASET@VERSION`, `DATASET@latest`, or `DATASET` where no path is called so.
        work: a folder for shards on their way; what is put there is removed again.
        public: the public bucket, for published versions.
        subset: of a published version or a local variant, the sample keys or shard names that are wanted.
        dataset: the data set it is about, where the requester says so: then the grant for it is checked beforehand.
        in_place: read a local variant where it lies, uploading nothing: for who serves the request on this machine.
        look: look at the images first, and hand nothing in where not one is protected: for who reads their own files.
        shard_size: images in an input shard of loose files.
        limits: what is taken at most.
        shown: what the requester calls the source, for messages and lists; by default its own name.
        request_id: an id made before; by default a new one.
        progress: told images packed, then bytes uploaded.

    Raises:
        NotAuthorised: the user may not have anything (or this) restored; the class says why.
        NotProtected: not one image is protected, with `look`.
        InputError, CorruptManifest: the source holds nothing that could be restored, or is beyond a limit.
        NotFound: no such published version, or it has no shard of such a name.
        Conflict: there is a request of this id.
        UsageError: a subset of loose files, or a name that makes no sense.
        ObjectStoreError: the upload failed; nothing of it stays.
    """
    published = None if in_place else parse_published(source)
    check_grants(registry, user, published[0] if published else dataset)
    with scratch_folder(work, "request-") as folder:
        if published is not None:
            index = published_index(open_public(public), *published, subset)
        elif in_place:
            index = local_index(Path(source), subset)
        elif subset is not None:
            raise UsageError("A subset of loose files can not be named.", "Hand in only the files that are wanted.")
        else:
            if look:
                check_protected(Path(source), limits)
            index = pack_source(Path(source), folder, shard_size, limits, progress, shown).index
        dataset = _known_dataset(index) or dataset
        grant = None
        if dataset is not None:
            grant = authorise_images(registry, user.id, dataset, version_of(index), index.images)
        uploads = _Uploads(registry, store, folder, request_id or new_request_id(), shared=request_id is not None)
        shown = shown or str(source)
        return uploads.record(user, index, shown, dataset, subset, grant.id if grant else None, progress)


def version_of(index: RequestIndex) -> str | None:
    """The published version that a request names; None: an upload, or a folder of this machine."""
    return index.origin.version if isinstance(index.origin, Published) else None


def open_public(public: ObjectStore | None) -> ObjectStore:
    """The public bucket. Raises UsageError when none was given."""
    if public is None:
        raise UsageError("A published version is asked for and no public bucket is given.", "Name the public store.")
    return public


def _known_dataset(index: RequestIndex) -> str | None:
    """The data set of what is not uploaded: its own manifest, which lies with us, says so."""
    return None if index.variant is None or isinstance(index.origin, Uploaded) else index.variant.dataset


def check_grants(registry: Registry, user: User, dataset: str | None) -> None:
    """That the user holds a grant for this data set, or (None) for any at all; else why not.

    Whether it covers what is asked for shows when that was read.
    """
    if dataset is None and registry.datasets_granted(user.id):
        return
    grants = registry.list_grants(user.name, dataset)
    if not grants and dataset is None:
        raise NoGrant(f"{user.name} holds no grant.", f"An owner can give one: dmcp access grant {user.name} DATASET")
    newest = max(grants, key=lambda grant: grant.created, default=None)
    with suppress(OutOfScope):
        registry.authorise(user.id, newest.dataset if newest else str(dataset))


class _Uploads:
    """Puts a request's input and index into the private bucket, then records it.

    After an error nothing of it stays, unless others may hand in under the same id (`shared`): it may be theirs.
    """

    def __init__(self, registry: Registry, store: ObjectStore, folder: Path, request_id: str, shared: bool) -> None:
        self.registry = registry
        self.store = store
        self.folder = folder
        self.request_id = request_id
        self.shared = shared

    def record(
        self,
        user: User,
        index: RequestIndex,
        source: str,
        dataset: str | None,
        subset: Sequence[str] | None,
        grant_id: int | None,
        progress: Progress | None,
    ) -> str:
        origin = index.origin
        shards = [entry.shard for entry in index.shards] if isinstance(origin, Uploaded) else []
        self._check_fresh()
        self.store.ensure_bucket()
        try:
            self._put(index, shards, progress)
            return self.registry.create_request(
                user.id,
                origin.kind,
                dataset,
                source if isinstance(origin, Uploaded) else origin.source,
                subset,
                images=index.images + len(index.refused),
                request_id=self.request_id,
                grant_id=grant_id,
                actor=user.name,
            )
        except BaseException as error:
            if not self.shared:
                self._remove(shards)
            if isinstance(error, UsageError):  # another process was faster: that is what the caller is to know
                self._check_fresh()
            raise

    def _check_fresh(self) -> None:
        if self._recorded():
            raise Conflict(f"Request {self.request_id} exists.", "Make another id.")

    def _recorded(self) -> bool:
        try:
            self.registry.get_request(self.request_id)
        except NotFound:
            return False
        return True

    def _remove(self, shards: list[ShardInfo]) -> None:
        """Remove what was uploaded, if it is certain that it belongs to no request."""
        with suppress(DmcpError):
            if self._recorded():
                return
            for name in [INDEX_NAME, *(shard.name for shard in shards)]:
                with suppress(DmcpError):
                    self.store.delete(request_key(self.request_id, name))

    def _put(self, index: RequestIndex, shards: list[ShardInfo], progress: Progress | None) -> None:
        meter = Meter("upload", sum(shard.bytes for shard in shards), progress)

        def upload(shard: ShardInfo) -> None:
            self._check_fresh()
            key = request_key(self.request_id, shard.name)
            self.store.put_file(self.folder / shard.name, key, shard.sha256, "application/x-tar", meter.add)

        in_parallel(upload, shards, TRANSFERS)
        data = index.model_dump_json().encode()
        self._check_fresh()
        self.store.put_bytes(request_key(self.request_id, INDEX_NAME), data, content_type="application/json")
