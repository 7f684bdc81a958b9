"""How much of a protection a treatment undoes.

A treatment brings accuracy *back* when a network trained on the treated protected images comes more than half of the
way from what it reaches on protected images as they are to what clean images give under the same treatment. Both the
last epoch and the best one count, each against its like: who stops early enough gets the best. The way is a contrast
of means with a 95 % interval (`tasks.noise`); where the interval holds half of the way, the finding is open. A row of
one seed is taken to spread as the rows of this report do that have several.
"""

from dataclasses import dataclass
from typing import Literal

from tasks.evidence.records import CLEAN
from tasks.evidence.tables import Book, Epoch, Score
from tasks.noise import Difference

Finding = Literal["undone", "perhaps", "holds", "no gap"]


@dataclass(frozen=True)
class Effect:
    """What one treatment does to one protection.

    Attributes:
        plain: the protected images as they are; `treated`; `clean`: clean images under the same treatment, or as they
            are where `same_treatment` is False.
        epoch: the one at which more of the way is gone; all figures below are of it.
        way: share of the way from plain to clean that is gone; None where there is no way to go.
        beyond: treated minus half of the way, with its interval.
        effect: treated minus plain.
        short: clean minus treated.
    """

    protection: str
    plain: Score
    treated: Score
    clean: Score
    same_treatment: bool
    epoch: Epoch
    finding: Finding
    way: float | None
    beyond: Difference
    effect: Difference
    short: Difference

    def accuracy(self, score: Score) -> float:
        """Mean test accuracy at the epoch that counts."""
        return (score.last if self.epoch == "last" else score.peak).mean


def judge(book: Book, protection: str, countermeasure: str = "none", attack: str = "none") -> Effect | None:
    """The effect of a treatment; None where a cell is missing that it is compared with."""
    plain = book.get(protection)
    treated = book.get(protection, countermeasure=countermeasure, attack=attack)
    same = None if attack != "none" else book.get(CLEAN, countermeasure=countermeasure)
    clean = same or book.get(CLEAN)
    if plain is None or treated is None or clean is None:
        return None
    epochs: tuple[Epoch, ...] = ("last", "best")
    both = [_at(book, epoch, plain, treated, clean, same is not None) for epoch in epochs]
    return max(both, key=lambda effect: (_RANK[effect.finding], -1.0 if effect.way is None else effect.way))


_RANK: dict[Finding, int] = {"no gap": 0, "holds": 1, "perhaps": 2, "undone": 3}


def _at(book: Book, epoch: Epoch, plain: Score, treated: Score, clean: Score, same: bool) -> Effect:
    gap = book.contrast(epoch, [(1, clean), (-1, plain)])
    effect = book.contrast(epoch, [(1, treated), (-1, plain)])
    beyond = book.contrast(epoch, [(1, treated), (-0.5, plain), (-0.5, clean)])
    short = book.contrast(epoch, [(1, clean), (-1, treated)])
    way = effect.value / gap.value if gap.value > 0 and not gap.within_noise else None
    return Effect(
        protection=plain.cell.protection, plain=plain, treated=treated, clean=clean, same_treatment=same, epoch=epoch,
        finding=_finding(way, beyond), way=way, beyond=beyond, effect=effect, short=short,
    )  # fmt: skip


def _finding(way: float | None, beyond: Difference) -> Finding:
    if way is None:
        return "no gap"
    if beyond.within_noise:
        return "perhaps"
    return "undone" if beyond.value > 0 else "holds"


def effects(book: Book, protection: str) -> list[Effect]:
    """Of all countermeasures that were tried."""
    found = (judge(book, protection, countermeasure=name) for name in book.countermeasures)
    return [effect for effect in found if effect is not None]


def attacks(book: Book, protection: str) -> list[Effect]:
    """Of all attacks that know the algorithm."""
    found = (judge(book, protection, countermeasure=name, attack=attack) for attack, name in book.attacks)
    return [effect for effect in found if effect is not None]


def best_attack(book: Book, protection: str) -> Score | None:
    """The attack after which networks are best, by the best epoch."""
    found = (book.get(protection, countermeasure=name, attack=attack) for attack, name in book.attacks)
    return max((score for score in found if score), key=lambda score: score.peak.mean, default=None)


def hardest(book: Book, protection: str) -> Score | None:
    """The treatment of any kind after which networks are best, by the best epoch."""
    found = [book.get(protection, countermeasure=name) for name in book.countermeasures]
    scores = [score for score in (*found, best_attack(book, protection)) if score]
    return max(scores, key=lambda score: score.peak.mean, default=None)
