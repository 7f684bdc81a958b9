"""The cells of one `Evidence` by what they asked, over seeds; and the rows that page and terminal both show."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from tasks.evidence.presets import RECOVERED
from tasks.evidence.records import CLEAN, Cell, CellResult, Evidence
from tasks.metrics import Stat
from tasks.noise import Difference, contrast

PLUS_MINUS = "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}"
Key = tuple[str, str, str, str, float, bool]
Epoch = Literal["last", "best"]


@dataclass(frozen=True)
class Score:
    """The results of one cell over its seeds, which rise."""

    results: tuple[CellResult, ...]

    @property
    def cell(self) -> Cell:
        """What was asked; its seed is the first one's."""
        return self.results[0].cell

    @property
    def seeds(self) -> list[int]:
        """Of weights, order and augmentation."""
        return [result.cell.seed for result in self.results]

    def by_seed(self, epoch: Epoch) -> list[float]:
        """Test accuracies after this epoch."""
        return [r.test_accuracy if epoch == "last" else r.peak_test_accuracy for r in self.results]

    @property
    def last(self) -> Stat:
        """Test accuracy after the last epoch."""
        return _stat(self.by_seed("last"))

    @property
    def peak(self) -> Stat:
        """Test accuracy after the best epoch."""
        return _stat(self.by_seed("best"))

    @property
    def train(self) -> Stat:
        """Accuracy on the training images, after the last epoch."""
        return _stat([result.train_accuracy for result in self.results])

    @property
    def n_train(self) -> int:
        """Images trained on."""
        return self.results[0].n_train

    @property
    def n_test(self) -> int:
        """Clean images tested on."""
        return self.results[0].n_test


def _stat(values: Sequence[float]) -> Stat:
    return Stat(mean=fmean(values), std=stdev(values) if len(values) > 1 else None, n=len(values))


def percent_pm(stat: Stat, digits: int = 1) -> str:
    """Mean ± sample standard deviation in percent; the mean alone for a single seed."""
    mean = f"{100 * stat.mean:.{digits}f}"
    return mean if stat.std is None else f"{mean}{PLUS_MINUS}{100 * stat.std:.{digits}f}"


class Book:
    """Scores by what was asked.

    Attributes:
        protections: their names, in the order of the facts, then of the cells; `recovered`: NAME-recovered likewise.
        architecture: the one that most plain cells have, resnet18 before others.
    """

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        found: dict[Key, dict[int, CellResult]] = defaultdict(dict)
        for result in evidence.cells:
            found[_key(result.cell)][result.cell.seed] = result
        self._scores = {key: Score(tuple(of[seed] for seed in sorted(of))) for key, of in found.items()}
        known = [facts.name for facts in evidence.protections]
        asked = [key[0] for key in self._scores if not key[5]]
        names = [name for name in dict.fromkeys([*known, *asked]) if name != CLEAN]
        self.protections = [name for name in names if not name.endswith(RECOVERED)]
        self.recovered = [name for name in names if name.endswith(RECOVERED)]
        self.architecture = self._main_architecture()

    @property
    def scores(self) -> list[Score]:
        """All, in the order of the cells."""
        return list(self._scores.values())

    def _main_architecture(self) -> str:
        plain = [key[3] for key in self._scores if key[1] == key[2] == "none" and key[4] == 1.0 and not key[5]]
        networks = sorted(set(plain), key=lambda name: (-plain.count(name), name != "resnet18", name))
        return networks[0] if networks else "resnet18"

    def get(
        self,
        protection: str,
        *,
        countermeasure: str = "none",
        attack: str = "none",
        architecture: str | None = None,
        share: float = 1.0,
        rest_only: bool = False,
    ) -> Score | None:
        """The score of one cell; None where it was not asked."""
        network = architecture or self.architecture
        return self._scores.get((protection, countermeasure, attack, network, round(share, 6), rest_only))

    def rest(self, protection: str, share: float) -> Score | None:
        """Trained on the clean images alone that a mixture of this share leaves unprotected."""
        for name in (CLEAN, protection):
            if found := self.get(name, share=share, rest_only=True):
                return found
        return None

    def contrast(self, epoch: Epoch, terms: Sequence[tuple[float, Score]]) -> Difference:
        """The weighted sum of mean accuracies; a score of one seed is taken to spread as those of several do."""
        # What came back bit for bit trains the models of the clean images: they count once.
        distinct = {tuple(result.digest for result in score.results): score for score in self.scores}
        accuracies = [(weight, score.by_seed(epoch)) for weight, score in terms]
        n_test = max(1, terms[0][1].n_test)
        return contrast(accuracies, n_test, [score.by_seed(epoch) for score in distinct.values()])

    @property
    def plain(self) -> dict[str, Score]:
        """Clean, protected, recovered: trained on as they are, with the main network."""
        found = {name: self.get(name) for name in (CLEAN, *self.protections, *self.recovered)}
        return {name: score for name, score in found.items() if score is not None}

    @property
    def countermeasures(self) -> list[str]:
        """All but none, in the order of the cells."""
        keys = [key for key in self._scores if key[1] != "none" and key[2] == "none" and key[3] == self.architecture]
        return list(dict.fromkeys(key[1] for key in keys if key[4] == 1.0))

    @property
    def attacks(self) -> list[tuple[str, str]]:
        """(attack, countermeasure) of those who know the algorithm, in the order of the cells."""
        keys = [key for key in self._scores if key[2] != "none" and key[3] == self.architecture and key[4] == 1.0]
        return list(dict.fromkeys((key[2], key[1]) for key in keys))

    @property
    def architectures(self) -> list[str]:
        """All with which something was trained plainly; the main one first."""
        found = [key[3] for key in self._scores if key[1] == key[2] == "none" and key[4] == 1.0 and not key[5]]
        return sorted(dict.fromkeys(found), key=lambda name: name != self.architecture)

    @property
    def shares(self) -> list[float]:
        """Shares of protected images below 1 that a mixture or its clean rest was trained with, rising."""
        found = {key[4] for key in self._scores if key[3] == self.architecture and key[1] == key[2] == "none"}
        return sorted(share for share in found if share < 1.0)


def _key(cell: Cell) -> Key:
    # A share of clean images says nothing, unless it names those that were left out.
    share = 1.0 if cell.protection == CLEAN and not cell.rest_only else round(cell.share, 6)
    return cell.protection, cell.countermeasure, cell.attack, cell.architecture, share, cell.rest_only
