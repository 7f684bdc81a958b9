"""What a request may have, shard by shard, and the record of it before anything is given out.

    keys = GrantedKeys(book, asker)                # gives a key while the user holds a grant for its data set
    batch = restore_samples(samples, keys)
    admitted = admit(batch, keys, lists, number)   # scope, image by image, under the grants as they are now; charged
    keys.stop_if_barred()                          # a request that depends on a grant that is gone ends here
    record(log, asker, number, info, ...)          # in the audit log; then, and only then, it is put

Nothing is released that was not charged and entered. An entry without its release can be: the worker died in between;
then the shard is restored again by the next attempt, charged once all the same, and entered again.

A grant that was revoked, ran out or is used up stops the restoration: no further image of its data set is released.
Where the whole request depends on it the request fails with that very error: it names that data set, or its user holds
no grant for any other that could still be served, or all that it restored was under that grant. Where images of other
data sets can still be served they are, and those of the barred one are refused one by one. What was released before
stays charged and on record; it is not handed out as long as the request has no report. What a request was charged that
is cancelled is given back: it is not, and will not be, handed out.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from flows import access
from flows.attempt import ACTOR
from storage.audit import AuditLog
from storage.errors import ForeignImage, NotAuthorised, UnknownKey
from storage.registry import Grant, Registry
from storage.shards import Sample, ShardInfo
from tasks.method.seal import DataKey
from tasks.request_scope import ClassLists, authorise_images, check_covered
from tasks.restore import Refusal, RestoredBatch


@dataclass(frozen=True)
class Asker:
    """Who asks for what: the part of a request that grants are about."""

    request_id: str
    user_id: int
    user: str
    dataset: str | None
    version: str | None


@dataclass
class GrantedKeys:
    """Gives a key by its id, when the request's user holds a grant for the key's data set at this moment."""

    book: Registry
    asker: Asker
    barred: dict[str, NotAuthorised] = field(default_factory=dict)

    def __call__(self, key_id: str) -> DataKey:
        """The key.

        Raises:
            UnknownKey: the vault does not hold it.
            ForeignImage: it is another data set's than the request is about.
            NotAuthorised: the user may not have its data set restored; the class says why.
        """
        try:
            key = access.data_key(key_id)
        except UnknownKey:  # without the vault's path: the requester reads it
            raise UnknownKey(
                f"Key {key_id} is not in the vault of this service.",
                "Only the vault of the data set's owner can restore these images.",
            ) from None
        if self.asker.dataset not in (None, key.dataset):
            raise ForeignImage(
                f"The image belongs to {key.dataset}; this request is about {self.asker.dataset}.",
                "Request it separately.",
            )
        self.grant(key.dataset)
        return key

    def grant(self, dataset: str, images: int = 0, shard: int | None = None) -> Grant:
        """The grant for a data set, for up to so many images. Raises NotAuthorised, and remembers why.

        A shard that an attempt charged before it died is paid for: while the grant that paid holds it serves again,
        though nothing may be left of it. Should there be more images now, `charge` says whether there is room.
        """
        paid = None if shard is None else self.book.charge_of(self.asker.request_id, shard, dataset)
        if paid is not None:
            with suppress(NotAuthorised):
                return self.book.authorise(self.asker.user_id, dataset, version=self.asker.version, grant=paid.grant_id)
        try:
            return authorise_images(self.book, self.asker.user_id, dataset, self.asker.version, images)
        except NotAuthorised as error:
            self.barred[dataset] = error
            raise

    def still_granted(self, grants: Mapping[str, Any]) -> bool:
        """Whether all that was restored under these grants (by data set) may still be had, under the same ones."""
        try:
            return all(self.grant(dataset).id == grant["id"] for dataset, grant in grants.items())
        except NotAuthorised:
            return False

    def stop_if_barred(self) -> None:
        """Raise why a data set is barred, when nothing else of the request could be restored anyway."""
        if not self.barred:
            return
        others = set(self.book.datasets_granted(self.asker.user_id)) - set(self.barred)
        for dataset, error in self.barred.items():
            if dataset == self.asker.dataset or not others:
                raise error


@dataclass
class Admitted:
    """What may be released of a shard: samples, refusals of the rest, and the grants with what each is good for."""

    samples: list[Sample]
    refusals: list[Refusal]
    grants: dict[str, dict[str, int]]


def admit(batch: RestoredBatch, keys: GrantedKeys, lists: ClassLists, shard: int | None) -> Admitted:
    """Ask again for the grant of every data set in a restored shard, check its scope image by image, charge it.

    Args:
        batch: what was restored.
        keys: who asks.
        lists: names of classes.
        shard: its number, to charge it; None: it is charged later.

    Raises:
        EnvironmentFault: the registry is out of reach; nothing may be released.
    """
    groups: dict[str, list[int]] = {}
    for i, origin in enumerate(batch.origins):
        groups.setdefault(origin.dataset, []).append(i)
    refused: dict[int, NotAuthorised] = {}
    grants: dict[str, dict[str, int]] = {}
    for dataset, members in groups.items():
        try:
            grant = keys.grant(dataset, len(members), shard)
            outside = _outside(batch, members, grant, lists)
            if covered := len(members) - len(outside):
                if shard is not None:
                    charge(keys, shard, grant, covered)
                grants[dataset] = {"id": grant.id, "images": covered}
            refused |= outside
        except NotAuthorised as error:
            refused |= dict.fromkeys(members, error)
    return Admitted(
        [sample for i, sample in enumerate(batch.samples) if i not in refused],
        [Refusal.of(batch.samples[i].key, error) for i, error in sorted(refused.items())],
        grants,
    )


def _outside(batch: RestoredBatch, members: list[int], grant: Grant, lists: ClassLists) -> dict[int, NotAuthorised]:
    """The images that the grant's scope does not cover, with the reason."""
    if grant.classes is None and grant.samples is None:
        return {}
    outside: dict[int, NotAuthorised] = {}
    for i in members:
        try:
            check_covered(grant, batch.samples[i].key, batch.origins[i].label, lists)
        except NotAuthorised as error:
            outside[i] = error
    return outside


def charge(keys: GrantedKeys, shard: int, grant: Grant, images: int) -> None:
    """Count a shard's images against the grant, once. Raises NotAuthorised, and remembers why."""
    try:
        keys.book.charge(keys.asker.request_id, shard, grant.id, images)
    except NotAuthorised as error:
        keys.barred[grant.dataset] = error
        raise


def record(
    log: AuditLog, asker: Asker, shard: int, info: ShardInfo, grants: Mapping[str, Mapping[str, int]], attempt: int
) -> None:
    """Enter in the audit log that a shard is about to be released: one entry for each data set in it.

    Raises:
        EnvironmentFault: it can not be written; then nothing may be released.
    """
    for dataset, grant in grants.items():
        log.record(
            ACTOR,
            "release",
            dataset=dataset,
            request_id=asker.request_id,
            subject=asker.user,
            details={
                "shard": shard,
                "name": info.name,
                "images": grant["images"],
                "sha256": info.sha256,
                "grant": grant["id"],
                "attempt": attempt,
            },
        )
