from typing import Any

import pytest

from tasks.evidence import judgement, names, rivals, words
from tasks.evidence.records import Cell, CellResult
from tasks.evidence.tables import Book
from tasks.learning.adaptive import ATTACKS
from tests.tasks.evidence import made

LONE = Cell(protection="exact", architecture="vit_small")
INVERSE = ATTACKS["learned-inverse"].title


def said(sentences: list[str]) -> str:
    return " ".join(sentences).replace("\N{NO-BREAK SPACE}", " ")


def book(*parts: list[CellResult], **over: Any) -> Book:
    return Book(made.evidence([one for part in parts for one in part], **over))


def three(plain: float, treated: float, clean: float, clean_treated: float, name: str = "jpeg-10") -> Book:
    """Protection `exact` and a countermeasure, one seed."""
    return book(
        made.cells((0,), clean, protection="clean"),
        made.cells((0,), plain, protection="exact"),
        made.cells((0,), clean_treated, protection="clean", countermeasure=name),
        made.cells((0,), treated, protection="exact", countermeasure=name),
    )


def test_a_countermeasure_that_undoes_the_protection_is_named_with_the_published_methods() -> None:
    text = said(words.failures(three(0.2, 0.7, 0.9, 0.8)))
    assert "Under JPEG, quality 10 exact fails: accuracy comes back from 20.0 % to 70.0 %" in text
    assert "of 80.0 % that clean images give under the same treatment (83 % of the way)" in text
    assert "Published for others (APBench, TMLR 2024; CIFAR-10): accuracy comes back for every bounded" in text
    assert "of 85.38 that clean images give under it" in text
    assert "TAP 6.27 to 84.08, LSP 13.06 to 80.14, AR 11.74 to 84.75, EM 20.78 to 80.72" in text


@pytest.mark.parametrize(
    ("treated", "finding"), [(0.22, "holds"), (0.48, "holds"), (0.495, "perhaps"), (0.505, "perhaps"), (0.53, "undone")]
)
def test_half_of_the_way_counts_beyond_noise(treated: float, finding: str) -> None:
    effect = judgement.judge(three(0.2, treated, 0.9, 0.8), "exact", "jpeg-10")
    assert effect is not None
    assert effect.finding == finding
    assert effect.way == pytest.approx((treated - 0.2) / 0.6)


def test_what_holds_is_said_to_hold_and_promises_nothing() -> None:
    holding = three(0.2, 0.25, 0.9, 0.8)
    assert words.failures(holding) == []
    assert "exact holds, in that less than half comes back, under JPEG, quality 10 (25.0 %, 8 % of the way)" in said(
        words.holding(holding)
    )
    assert "one treatment tried here none is shown to give back half" in said(words.owner(holding))
    assert "says nothing of what was not tried" in said(words.owner(holding))


def test_the_published_methods_stand_once_a_treatment() -> None:
    sentences = words.failures(Book(made.full()))
    assert [sentence.split(" exact")[0] for sentence in sentences] == [
        "Under JPEG, quality 10", "Under adversarial training", f"Under {INVERSE}"
    ]  # fmt: skip
    assert "paper may fail" in sentences[0]
    assert sentences[0].count("Published for others") == 1


def test_within_noise_is_said_to_be_open() -> None:
    text = said(words.failures(three(0.2, 0.505, 0.9, 0.8)))
    assert "exact may fail" in text
    assert "(51 % of the way, and half of it is within noise)" in text
    assert "fails" not in text


def test_a_treatment_that_costs_as_much_as_it_gives_brings_nothing_back() -> None:
    effect = judgement.judge(three(0.4, 0.38, 0.9, 0.39), "exact", "jpeg-10")
    assert effect is not None
    assert (effect.finding, effect.way) == ("no gap", None)


def test_who_stops_early_counts() -> None:
    early = book(
        made.cells((0,), 0.9, protection="clean"),
        made.cells((0,), 0.2, protection="exact"),
        made.cells((0,), 0.3, 0.8, protection="exact", countermeasure="mixup"),
    )
    text = said(words.failures(early))
    assert "accuracy at the best epoch comes back from 20.0 % to 80.0 %" in text
    assert "of 90.0 % that clean images give untreated" in text
    assert "Published for others" in text
    assert "accuracy comes back for none of 9" in text


def test_an_owner_is_told_what_a_failure_means() -> None:
    text = said(words.owner(three(0.2, 0.7, 0.9, 0.8)))
    assert "it stops those who simply train on what is published" in text
    assert "does not stop one who tries JPEG, quality 10 (1 of 1 treatments are enough)" in text
    assert "that gives 70.0 %, 20.0 points less than clean images give" in text
    weak = said(words.owner(three(0.7, 0.8, 0.9, 0.8)))
    assert "does not stop even those who simply train" in weak


def test_a_protection_that_is_weak_at_the_best_epoch_is_weak() -> None:
    early = book(
        made.cells((0,), 0.9, protection="clean"),
        made.cells((0,), 0.2, 0.6, protection="exact"),
        made.cells((0,), 0.3, protection="exact", countermeasure="mixup"),
    )
    assert "Protection is weak here" in said(words.plain(early))
    assert "does not stop even those who simply train" in said(words.owner(early))


def test_an_attack_with_the_algorithm_is_judged_like_a_countermeasure() -> None:
    attacked = book(
        made.cells((0, 1, 2), 0.9, protection="clean"),
        made.cells((0, 1, 2), 0.2, protection="exact"),
        made.cells((0, 1, 2), 0.25, protection="exact", attack="class-average"),
        made.cells((0, 1, 2), 0.7, protection="exact", attack="learned-inverse"),
    )
    assert f"Under {INVERSE} exact fails" in said(words.failures(attacked))
    assert "Published" not in said(words.failures(attacked))
    text = said(words.attacks(attacked))
    assert f"20.5 % naively, 70.5 % with the best attack, {INVERSE} (+50.0 points)" in text
    best = judgement.best_attack(attacked, "exact")
    assert best is not None and best.cell.attack == "learned-inverse"
    assert len(best.seeds) == 3


def test_a_treatment_of_one_seed_is_judged_by_the_spread_between_seeds() -> None:
    """The test set alone would tell 30 from 40 % (half of the way); seeds that differ by 7 points do not."""

    def judged(*plain: float) -> str:
        found = book(
            [made.result(Cell(protection="clean", seed=seed), 0.6) for seed in range(3)],
            [made.result(Cell(protection="exact", seed=seed), accuracy) for seed, accuracy in enumerate(plain)],
            made.cells((0,), 0.3, protection="exact", countermeasure="jpeg-10"),
        )
        effect = judgement.judge(found, "exact", "jpeg-10")
        assert effect is not None
        return effect.finding

    assert judged(0.2, 0.2, 0.2) == "holds"
    assert judged(0.13, 0.2, 0.27) == "perhaps"


def test_models_that_came_back_bit_for_bit_count_once() -> None:
    first = book(made.cells((0, 1), 0.6, protection="clean"), made.cells((0, 1, 2), 0.2, protection="exact"))
    both = Book(
        made.evidence(
            [*first.evidence.cells, *made.cells((0, 1), 0.6, protection="exact-recovered"), made.result(LONE, 0.3)]
        )
    )
    single, clean = both.get("exact", architecture="vit_small"), both.get("clean")
    assert single is not None and clean is not None
    change = both.contrast("last", [(-1, clean), (1, single)])
    assert change.high - change.value == pytest.approx(3.1824463 * (0.0000625 / 3 * 1.5) ** 0.5)


def test_no_effect_and_a_protection_that_helps_are_said() -> None:
    same = book(made.cells((0,), 0.6, protection="clean"), made.cells((0,), 0.6, protection="exact"))
    assert "exact: no effect is shown" in said(words.plain(same))
    assert "one seed tells nothing of the spread between runs" in said(words.plain(same))
    better = book(made.cells((0,), 0.6, protection="clean"), made.cells((0,), 0.8, protection="exact"))
    assert "exact fails: trained on as published, models do better" in said(words.plain(better))
    guess = book(made.cells((0,), 0.6, protection="clean"), made.cells((0,), 0.09, protection="exact"))
    assert "no better than guessing (10.0 %)" in said(words.plain(guess))


def test_seeds_are_counted_out_loud() -> None:
    one = book(made.cells((0,), 0.6, protection="clean"))
    assert "Every figure is of one seed" in said(words.uncertainty(one))
    three_seeds = book(made.cells((0, 1, 2), 0.6, protection="clean"))
    assert "mean over 3 seeds, ± the sample standard deviation" in said(words.uncertainty(three_seeds))
    mixed = Book(made.full())
    assert "means over 1 to 3 seeds" in said(words.uncertainty(mixed))
    assert "are of one seed, which intervals and findings take to spread as the others do." in said(
        words.uncertainty(mixed)
    )


def test_the_scale_of_the_setting_is_said() -> None:
    text = said(words.uncertainty(Book(made.full())))
    assert "a scaled setting, 5,000 images instead of 50,000 and 4 epochs instead of the paper's 80" in text
    whole = book(made.cells((0,), 0.6, protection="clean"), setting=made.setting(images=50_000, epochs=80))
    assert "scaled" not in said(words.uncertainty(whole))
    own = book(made.cells((0,), 0.6, protection="clean"), setting=made.setting(dataset="mine"))
    assert "Published figures are of CIFAR-10, not of this data set" in said(words.uncertainty(own))


def test_a_wrong_image_is_the_first_thing_said_of_keys() -> None:
    text = said(words.keys([made.trial("wrong-key", refused=249, wrong=1)]))
    assert text == "Keys fail: 1 of 250 misuses gave an image that is not the clean one."
    assert words.keys([]) == []


def test_exactness_is_counted() -> None:
    facts = [
        made.facts("exact", images=100, left_out=10, beside=9, restored=89, identical=89, refused=1),
        made.facts("paper", beside=0, identical=3, max_error=1),
    ]
    first, second = (sentence.replace("\N{NO-BREAK SPACE}", " ") for sentence in words.exactness(facts))
    assert first == (
        "exact: of 90 protected images 89 were restored, every one bit for bit; 1 were refused; 10 of 100 could not be "
        "protected; 10.00 % carry their payload beside the pixels."
    )
    assert (
        second
        == "paper: of 5,000 protected images 5,000 were restored, 3 bit for bit, the others within 1 of 255 a sample."
    )


def test_other_networks_and_mixtures() -> None:
    full = Book(made.full())
    assert "networks keep 21 % (ResNet-18) to 67 % (small ViT); weak on small ViT" in said(words.architectures(full))
    text = said(words.shares(full))
    assert "nothing beyond noise at 20 %" in text
    assert "+4.0 points at 80 %" in text


def test_recovered_is_no_protection() -> None:
    full = Book(made.full())
    assert full.protections == ["exact", "paper"]
    assert full.recovered == ["exact-recovered"]
    assert list(full.plain) == ["clean", "exact", "paper", "exact-recovered"]


def test_the_last_result_of_a_cell_and_seed_counts_and_seeds_rise() -> None:
    found = [made.result(Cell(protection="clean", seed=seed), 0.5) for seed in (2, 0, 1)]
    score = Book(made.evidence([*found, made.result(Cell(protection="clean", seed=1), 0.7)])).get("clean")
    assert score is not None
    assert score.seeds == [0, 1, 2]
    assert score.by_seed("last") == pytest.approx([0.5, 0.705, 0.51])
    assert score.last.std == pytest.approx(0.1156, abs=1e-3)


def test_published_methods_come_back_where_the_literature_says() -> None:
    assert {rival.name for rival in rivals.halfway_back("jpeg-10")[0]} == {
        "DC", "EM", "REM", "HYPO", "NTGA", "TAP", "LSP", "AR", "OPS"
    }  # fmt: skip
    assert [rival.name for rival in rivals.halfway_back("adversarial")[1]] == ["HYPO", "OPS"]
    assert rivals.halfway_back("cutout")[0] == []
    assert rivals.halfway_back("orthogonal") == ([], [])
    assert words.published_line("orthogonal") == ""


def test_everything_that_is_shown_has_a_title() -> None:
    from tasks.evidence.keys import TRIALS
    from tasks.learning.models import ARCHITECTURES

    assert set(TRIALS) == set(names.TRIALS)
    assert set(ARCHITECTURES) == set(names.ARCHITECTURES)
    assert names.treatment("none") == "none"
    assert names.treatment("jpeg-10", "lsb-plane") == f"{ATTACKS['lsb-plane'].title} with JPEG, quality 10"
    assert names.treatment("of-tomorrow") == "of tomorrow"


def test_every_countermeasure_of_ours_with_published_figures_has_their_name() -> None:
    from tasks.learning.countermeasures import COUNTERMEASURES

    columns = set(rivals.of_source(rivals.APBENCH)[0].accuracy) - set(rivals.EXTRA_COLUMNS)
    assert columns <= set(COUNTERMEASURES)
