"""The registry's book of data sets: who owns them, and under which terms they are used.

Terms are numbered 1, 2, ... for each data set; the newest counts. Whoever accepted an older one is asked again.
"""

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from storage import audit
from storage.database import utc_now
from storage.errors import Forbidden, NotFound, UsageError
from storage.names import check_dataset_name
from storage.policies import check_manages, check_role
from storage.registry_models import Acceptance, Dataset, Terms, User
from storage.registry_users import LOCAL, UserBook, lock_user, locked_user, user_by_id


class DatasetBook(UserBook):
    """Data sets, terms and acceptances."""

    def register_dataset(
        self, name: str, owner: str, title: str | None = None, description: str | None = None, *, actor: str = LOCAL
    ) -> Dataset:
        """Put a data set on record as this owner's; again by the same owner: with another title or description.

        Args:
            name: the data set's name.
            owner: the name of a user with the role owner or operator.
            title: one line for people; None: as it is.
            description: more; None: as it is.
            actor: who does this, for the audit log.

        Raises:
            NotFound: no such user.
            Forbidden: it is another owner's, or the user may not own data sets.
            UsageError: the name can not name a data set.
        """
        check_dataset_name(name)
        try:
            return self._register(name, owner, title, description, actor)
        except IntegrityError:  # another registered it at the same time
            return self._register(name, owner, title, description, actor)

    def _register(self, name: str, owner: str, title: str | None, description: str | None, actor: str) -> Dataset:
        with self.write() as session:
            user = _may_own(locked_user(session, owner))
            dataset = session.get(Dataset, name)
            if dataset is not None and dataset.owner_id != user.id:
                raise Forbidden(
                    f"The data set {name} belongs to {dataset.owner.name}.", "Choose another name, or ask them."
                )
            before = None if dataset is None else (dataset.title, dataset.description)
            if dataset is None:
                dataset = Dataset(name=name, owner=user, title="", description="", created=utc_now())
                session.add(dataset)
            dataset.title = dataset.title if title is None else title
            dataset.description = dataset.description if description is None else description
            if before != (dataset.title, dataset.description):
                session.flush()
                details = {"title": dataset.title}
                audit.append(
                    session, actor=actor, action="dataset.register", dataset=name, subject=owner, details=details
                )
        return dataset

    def get_dataset(self, name: str) -> Dataset:
        """The data set of this name. Raises NotFound."""
        with self.read() as session:
            return dataset_named(session, name)

    def list_datasets(self, owner: str | None = None) -> Sequence[Dataset]:
        """All data sets, by name; those of one owner when named."""
        query = select(Dataset).join(Dataset.owner).order_by(Dataset.name)
        if owner is not None:
            query = query.where(User.name == owner)
        return self.all(query)

    def transfer_dataset(self, name: str, owner: str, *, actor: str = LOCAL) -> None:
        """Make a data set another owner's.

        Raises:
            NotFound: no such data set or user.
            Forbidden: the user may not own data sets.
        """
        with self.write() as session:
            user = _may_own(locked_user(session, owner))
            dataset = dataset_named(session, name, locked=True)
            if dataset.owner_id != user.id:
                details = {"before": dataset.owner.name}
                dataset.owner_id = user.id
                audit.append(
                    session, actor=actor, action="dataset.transfer", dataset=name, subject=owner, details=details
                )

    def check_manages(self, user: User, name: str) -> Dataset:
        """The data set, when this user decides about it: its owner, or an operator.

        Raises:
            NotFound: no such data set.
            Forbidden: someone else's.
        """
        return check_manages(user, self.get_dataset(name))

    # --- terms -----------------------------------------------------------------------------------------------------

    def set_terms(self, dataset: str, text: str, *, actor: str = LOCAL) -> Terms:
        """Let new terms of use count from now on, and return them; the same text again changes nothing.

        Raises:
            NotFound: no such data set.
            UsageError: the text is empty.
        """
        if not text.strip():
            raise UsageError("Terms of use need a text.", "A data set without terms has none set.")
        with self.write() as session:
            dataset_named(session, dataset, locked=True)
            current = newest_terms(session, dataset)
            if current is not None and current.text == text:
                return current
            number = 1 if current is None else current.version + 1
            terms = Terms(dataset=dataset, version=number, text=text, created=utc_now())
            session.add(terms)
            session.flush()
            audit.append(
                session,
                actor=actor,
                action="terms.set",
                dataset=dataset,
                subject=f"version {number}",
                details={"version": number, "characters": len(text)},
            )
        return terms

    def current_terms(self, dataset: str) -> Terms | None:
        """The terms of use that count now; None: there are none."""
        with self.read() as session:
            return newest_terms(session, dataset)

    def get_terms(self, dataset: str, version: int) -> Terms:
        """One version of a data set's terms of use. Raises NotFound."""
        with self.read() as session:
            return _terms(session, dataset, version)

    def accept_terms(self, user_id: int, dataset: str, version: int, *, actor: str = LOCAL) -> None:
        """Record that a user accepts the data set's current terms; done again, nothing changes.

        Raises:
            NotFound: no such user, or no terms of this version.
            UsageError: newer terms count by now.
        """
        with self.write() as session:
            lock_user(session, user_id)
            user = user_by_id(session, user_id)
            terms = _terms(session, dataset, version)
            newest = newest_terms(session, dataset)
            if newest is not None and newest.version != version:
                raise UsageError(
                    f"Version {version} of the terms of use of {dataset} no longer counts.",
                    f"Read and accept version {newest.version}.",
                )
            if session.get(Acceptance, (user_id, terms.id)) is None:
                session.add(Acceptance(user_id=user_id, terms_id=terms.id, accepted=utc_now()))
                session.flush()
                audit.append(
                    session,
                    actor=actor,
                    action="terms.accept",
                    dataset=dataset,
                    subject=user.name,
                    details={"version": version},
                )

    def accepted_terms(self, user_id: int, dataset: str) -> int | None:
        """The highest version of the data set's terms that this user accepted; None: none."""
        with self.read() as session:
            return accepted_version(session, user_id, dataset)


# --- shared by the other books ---------------------------------------------------------------------------------------


def dataset_named(session: Session, name: str, locked: bool = False) -> Dataset:
    """The data set of this name. `locked`: other transactions that change it wait until this one ends.

    Raises:
        NotFound: there is none.
    """
    if locked:
        session.execute(select(Dataset.name).where(Dataset.name == name).with_for_update(key_share=True))
    dataset = session.get(Dataset, name, populate_existing=locked)
    if dataset is None:
        raise NotFound(f"There is no data set {name[:64]!a}.", "See `dmcp access datasets`.")
    return dataset


def newest_terms(session: Session, dataset: str) -> Terms | None:
    """The terms of use that count."""
    return session.scalar(select(Terms).where(Terms.dataset == dataset).order_by(Terms.version.desc()).limit(1))


def accepted_version(session: Session, user_id: int, dataset: str) -> int | None:
    """The highest version of the terms that the user accepted."""
    return session.scalar(
        select(func.max(Terms.version))
        .join(Acceptance, Acceptance.terms_id == Terms.id)
        .where(Acceptance.user_id == user_id, Terms.dataset == dataset)
    )


def _may_own(user: User) -> User:
    if user.disabled:
        raise UsageError(f"{user.name} was shut out.", f"Let them in first: dmcp access enable {user.name}")
    return check_role(user, "owner")


def _terms(session: Session, dataset: str, version: int) -> Terms:
    terms = session.scalar(select(Terms).where(Terms.dataset == dataset, Terms.version == version))
    if terms is None:
        raise NotFound(
            f"There are no terms of use of {dataset[:64]!a} with the number {version}.",
            f"See `dmcp access terms show {dataset[:64]}`.",
        )
    return terms
