import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from storage.errors import DatasetError
from tasks.evaluate import evaluate
from tasks.figures import confusion_matrix
from tasks.metrics import Evaluation
from tasks.report import flatten, summary_table, write_report
from tests.tasks.evaluation_folder import CLASSES, PARAMS, make_folder, write_model

PARAMETERS = {
    "protect": {"transform": {"block": 4, "planes": 1}},
    "train": {"lr": None, "note": "<script>alert(1)</script>"},
}


class Page(HTMLParser):
    """Every tag with its attributes, the text, and whether tags close in the order in which they were opened."""

    VOID = frozenset({"meta", "img", "br", "hr", "link", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.misnested: list[str] = []
        self.pieces: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.misnested.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.pieces.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"[ \n]+", " ", " ".join(self.pieces)).replace("\N{NO-BREAK SPACE}", " ")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "tiny", left_out=[2])


def written(folder: Path) -> tuple[Page, str]:
    evaluate(folder, PARAMS)
    page = write_report(folder, PARAMETERS)
    assert page == folder / "report.html"
    html = page.read_text(encoding="utf-8")
    return Page(html), html


def test_the_page_is_well_formed_and_refers_to_nothing_outside_itself(folder: Path) -> None:
    page, html = written(folder)
    assert page.misnested == []
    assert page.open == []
    names = {tag for tag, _ in page.tags}
    assert {"table", "svg", "img"} <= names
    assert not names & {"script", "link", "iframe", "object"}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("href", "src", "xlink:href", "action", "data"):
                assert value is not None
                assert value.startswith(("data:", "#")), (tag, name, value[:40])
            assert "://" not in (value or ""), (tag, name)
    assert "://" not in html
    assert "@import" not in html
    assert all(target.startswith(("#", "data:")) for target in re.findall(r"url\(['\"]?([^)]*)", html))


def test_references_inside_the_page_lead_somewhere_and_ids_are_unique(folder: Path) -> None:
    page, html = written(folder)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = set(re.findall(r'xlink:href="#([^"]+)"', html)) | set(re.findall(r"url\(#([^)]+)\)", html))
    assert wanted <= set(ids)


def test_the_page_holds_the_figures(folder: Path) -> None:
    page, _ = written(folder)
    for expected in (
        "81.00 ± 1.41",  # clean, last epoch: 80 and 82
        "52.00 ± 2.83",  # protected: 50 and 54
        "53.00 ± 2.83",  # its best epoch
        "28.13",  # PSNR of ten on every sample
        "48.13",  # PSNR of one on every sample
        "0 of 7 (0.0 %)",
        "Left out of the protected variant: 1 of 8",
        "nothing fitted <here>",
        "one more plane",
        "15 bytes on average (10 to 29)".replace("15", "16"),
        "69 bytes",
        "protect.transform.block",
        "2 seeds (0, 1)",
        "whole stage by the clock, 2 workers, 5 images",
        "Python 3.",
        "torch",
        "keep it as private as the clean data set",
    ):
        assert expected in page.text, expected


def test_names_from_outside_are_text_never_markup(folder: Path) -> None:
    page, html = written(folder)
    assert "<script" not in html
    assert "<script>alert(1)</script>" in page.text
    assert "a <b>&amp;$x$" in page.text  # the class's name as given, on an axis of the confusion matrices
    assert CLASSES[1] == "a <b>&amp;$x$"


def test_colours_follow_the_page_in_light_dark_and_print(folder: Path) -> None:
    _, html = written(folder)
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
    assert "var(--ink)" in html[html.index("<svg") :]
    assert "#010203" not in html
    assert "#040506" not in html


def test_a_data_set_of_our_own_has_no_published_figures(folder: Path) -> None:
    page, _ = written(folder)
    assert "No figures were published for this data set." in page.text
    assert "86.21" not in page.text


def test_the_papers_figures_stand_beside_ours_with_what_differs(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "cifar10", dataset="cifar10")
    evaluate(folder, PARAMS)
    page = Page(write_report(folder, {"train": {"lr": 0.1, "batch_size": None}}).read_text(encoding="utf-8"))
    for figure in ("86.21", "96.44", "38.23", "100.00", "85.86", "95.21"):
        assert figure in page.text
    for difference in (
        "A scaled configuration, smaller than the published one",
        "Epochs: 2 here, 80 in the paper.",
        "Training images: 8 here, 50,000 in the paper.",
        "Test images: 1,000 here, 10,000 in the paper.",
        "Recipe: “modern” here",
        "Changed of the recipe: lr 0.1.",
    ):
        assert difference in page.text


def test_a_setting_as_published_is_not_called_scaled(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "cifar10", dataset="cifar10")
    for variant in ("clean", "protected", "recovered"):
        for seed in (0, 1):
            write_model(folder, variant, seed, 0.8, epochs=80, recipe="paper", n_train=50_000, n_test=10_000)
    page, _ = written(folder)
    assert "scaled configuration" not in page.text
    assert "The paper does not say which stem" in page.text
    assert "Epochs:" not in page.text


def test_one_seed_is_said_to_be_one(folder: Path) -> None:
    evaluate(folder, PARAMS, seeds=[0])
    text = Page(write_report(folder, {}).read_text(encoding="utf-8")).text
    assert "one seed (0), so without a deviation" in text
    assert "one seed tells nothing of the spread between runs" in text


def test_bit_exact_recovery_is_said_in_words(tmp_path: Path) -> None:
    page, _ = written(make_folder(tmp_path / "tiny", recover=lambda image: image))
    assert "every one bit for bit" in page.text
    assert "Clean and recovered are the same, bit for bit." in page.text
    assert "identical" in page.text


def test_the_report_needs_its_evaluation(folder: Path) -> None:
    with pytest.raises(DatasetError, match=r"evaluation\.json is missing"):
        write_report(folder, {})
    evaluate(folder, PARAMS)
    (folder / "plots" / "curves.csv").unlink()
    with pytest.raises(DatasetError, match=r"curves\.csv is missing"):
        write_report(folder, {})


def test_the_terminals_table(folder: Path) -> None:
    console = Console(width=120, record=True)
    console.print(summary_table(evaluate(folder, PARAMS)))
    lines = [re.sub(r"[│ \N{NO-BREAK SPACE}]+", " ", line).strip() for line in console.export_text().splitlines()]
    assert "clean 99.00 ± 0.00 81.00 ± 1.41 82.00 ± 1.41 – –" in lines
    assert any(line.startswith("protected 99.00 ± 0.00 52.00 ± 2.83 53.00 ± 2.83 28.1 0.") for line in lines)
    assert any(line.startswith("recovered 99.00 ± 0.00 81.00 ± 0.00 82.00 ± 0.00 48.1 0.") for line in lines)


def test_confusion_shares_are_of_the_actual_class() -> None:
    rows = [{"actual": a, "predicted": p} for a, p in (("x", "x"), ("x", "y"), ("x", "y"), ("y", "y"))]
    found = confusion_matrix(rows, ["x", "y", "z"])
    assert np.allclose(found, [[1 / 3, 2 / 3, 0], [0, 1, 0], [0, 0, 0]])


def test_flatten_names_nested_values() -> None:
    assert flatten({"a": {"b": 1, "c": None}, "d": [1, 2]}) == [("a.b", "1"), ("a.c", "–"), ("d", "[1, 2]")]


def test_the_record_on_disk_reads_back_with_unknown_fields(folder: Path) -> None:
    evaluate(folder, PARAMS)
    path = folder / "metrics" / "evaluation.json"
    content = json.loads(path.read_text()) | {"later": 1}
    assert Evaluation.model_validate_json(json.dumps(content)).dataset == "tiny"
