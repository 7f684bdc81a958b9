"""The rows of the report's tables, as texts; accuracies in percent, mean ± sample standard deviation over seeds."""

from math import isfinite
from typing import Any

from tasks.evidence import judgement, names, rivals
from tasks.evidence.judgement import Effect
from tasks.evidence.records import CLEAN, Evidence
from tasks.evidence.tables import PLUS_MINUS, Book, Score, percent_pm
from tasks.learning.adaptive import ATTACKS
from tasks.learning.countermeasures import COUNTERMEASURES
from tasks.metrics import VARIANTS
from tasks.published import Published
from tasks.verdict import percent

NONE = "–"
Rows = list[dict[str, Any]]
_WORDS = {"undone": "comes back", "perhaps": "perhaps", "holds": "holds", "no gap": "nothing to bring back"}


def accuracy(book: Book) -> Rows:
    """Trained on as they are."""
    return [
        {
            "name": name,
            "cells": [
                percent_pm(score.last), percent_pm(score.peak), percent_pm(score.train),
                str(len(score.seeds)), f"{score.n_train:,}",
            ],
        }
        for name, score in book.plain.items()
    ]  # fmt: skip


def paper(published: Published) -> dict[str, Any]:
    """The figures of the method's own paper."""
    rows = [
        {
            "name": name,
            "cells": [f"{100 * published.accuracy[name][1]:.2f}", f"{100 * published.accuracy[name][0]:.2f}"],
        }
        for name in VARIANTS
    ]
    return {"title": published.title, "rows": rows}


def countermeasures(book: Book) -> Rows:
    """A row a countermeasure and series, none first."""
    rows: Rows = []
    if not book.countermeasures:
        return rows
    for treatment in ("none", *book.countermeasures):
        first = True
        for name in (CLEAN, *book.protections):
            score = book.get(name, countermeasure=treatment)
            if score is None:
                continue
            effect = judgement.judge(book, name, treatment) if name != CLEAN and treatment != "none" else None
            title = names.countermeasure_title(treatment) if first else ""
            rows.append({"title": title, "name": name, "cells": _cells(score, effect), "finding": _finding(effect)})
            first = False
    return rows


def attacks(book: Book) -> Rows:
    """A row an attack and protection; the naive training first."""
    rows: Rows = []
    for name in book.protections if book.attacks else ():
        tried = [
            (attack, treatment, book.get(name, countermeasure=treatment, attack=attack))
            for attack, treatment in book.attacks
        ]
        if not any(score for _, _, score in tried):
            continue
        if plain := book.get(name):
            rows.append({"title": "none: naive", "name": name, "cells": _cells(plain, None), "finding": ""})
        for attack, treatment, score in tried:
            if score:
                effect = judgement.judge(book, name, treatment, attack)
                title = names.treatment(treatment, attack)
                rows.append({"title": title, "name": name, "cells": _cells(score, effect), "finding": _finding(effect)})
    return rows


def _cells(score: Score, effect: Effect | None) -> list[str]:
    way = NONE if effect is None or effect.way is None else percent(effect.way, 0)
    return [percent_pm(score.last), percent_pm(score.peak), str(len(score.seeds)), way]


def _finding(effect: Effect | None) -> str:
    return "" if effect is None else _WORDS[effect.finding]


def architectures(book: Book) -> Rows:
    """A row a network, a column a series: last and, in brackets, best epoch."""
    if len(book.architectures) < 2:
        return []
    return [
        {
            "name": names.architecture(network),
            "cells": [_last_peak(book.get(name, architecture=network)) for name in (CLEAN, *book.protections)],
        }
        for network in book.architectures
    ]


def _last_peak(score: Score | None) -> str:
    return NONE if score is None else f"{percent_pm(score.last)} ({100 * score.peak.mean:.1f})"


def shares(book: Book) -> Rows:
    """A row a share and protection: the mixture, and the clean rest alone."""
    rows: Rows = []
    for share in book.shares:
        for name in book.protections:
            mixed, rest = book.get(name, share=share), book.rest(name, share)
            if mixed or rest:
                images = f"{rest.n_train:,}" if rest else NONE
                rows.append(
                    {"title": percent(share, 0), "name": name, "cells": [_last_peak(mixed), _last_peak(rest), images]}
                )
    return rows


def keys(evidence: Evidence) -> Rows:
    """A row a kind of misuse and protection."""
    return [
        {
            "title": names.trial(trial.trial),
            "name": trial.protection,
            "cells": [f"{trial.tried:,}", f"{trial.refused:,}", f"{trial.exact:,}", f"{trial.wrong:,}"],
            "reasons": ", ".join(f"{reason} {count:,}" for reason, count in sorted(trial.reasons.items())) or NONE,
        }
        for trial in evidence.keys
    ]


def fidelity(evidence: Evidence) -> Rows:
    """A row a protection: how much is seen of it."""
    return [
        {
            "name": of.name,
            "cells": [
                _plus_minus(of.psnr_mean, of.psnr_std, 2),
                _plus_minus(of.ssim_mean, of.ssim_std, 4),
                f"{sum(of.psnr.counts):,}",
                percent(of.beside / (of.images - of.left_out), 2) if of.images > of.left_out else NONE,
                f"{of.seconds:,.1f}",
            ],
        }
        for of in evidence.protections
    ]


def _plus_minus(mean: float, std: float, digits: int) -> str:
    """A dash where nothing was looked at, or every image is the clean one and has no PSNR."""
    if not isfinite(mean):
        return NONE
    return f"{mean:.{digits}f}{PLUS_MINUS}{std:.{digits}f}" if isfinite(std) else f"{mean:.{digits}f}"


def certificate(evidence: Evidence) -> Rows:
    """A row a protection: what came back."""
    return [
        {
            "name": of.name,
            "cells": [
                f"{of.images:,}", f"{of.left_out:,}", f"{of.restored:,}", f"{of.refused:,}",
                f"{of.identical:,} of {of.restored:,}", str(of.max_error),
            ],
        }
        for of in evidence.protections
    ]  # fmt: skip


def rival_tables(book: Book) -> list[dict[str, Any]]:
    """One table a source, all its methods; ours stand above in the source's columns, as measured here."""
    tables = []
    for source in (rivals.APBENCH, rivals.ISS, rivals.LEARNABILITY_LOCK):
        found = [rival for rival in rivals.RIVALS if rival.source == source]
        columns = list(found[0].accuracy)
        tables.append(
            {
                "title": source,
                "setting": rivals.SETTINGS[source],
                "columns": [rivals.EXTRA_COLUMNS.get(name) or names.countermeasure_title(name) for name in columns],
                "ours": [{"name": name, "cells": _ours(book, name, columns)} for name in (CLEAN, *book.protections)],
                "rows": [
                    {"name": rival.name, "cells": [f"{100 * rival.accuracy[name]:.2f}" for name in columns]}
                    for rival in found
                ],
            }
        )
    return tables


def _ours(book: Book, name: str, columns: list[str]) -> list[str]:
    scores = [book.get(name, countermeasure=column) for column in columns]
    return [NONE if score is None else f"{100 * score.last.mean:.1f}" for score in scores]


def abouts(book: Book) -> list[tuple[str, str]]:
    """What the treatments do, by title."""
    tried = [COUNTERMEASURES[name] for name in book.countermeasures if name in COUNTERMEASURES]
    known = [ATTACKS[name] for name in dict.fromkeys(attack for attack, _ in book.attacks) if name in ATTACKS]
    return [*((one.title, one.about) for one in tried), *((one.title, one.about) for one in known)]
