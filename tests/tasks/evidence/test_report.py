import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from storage.errors import DatasetError
from tasks.evidence.figures import accuracy_figure
from tasks.evidence.records import Cell, Evidence, Histogram
from tasks.evidence.report import read_evidence, write_evidence_report
from tasks.evidence.terminal import evidence_tables, evidence_words
from tests.tasks.evidence import made
from tests.tasks.test_report import Page

SECTIONS = {
    "Trained on as published", "Countermeasures", "Attackers who know the algorithm, but no key", "Other networks",
    "Mixed with clean images", "Keys", "Pixels", "Images", "Published figures", "How it was made",
}  # fmt: skip
PNG = b"\x89PNG\r\n\x1a\n picture"


class Headings(HTMLParser):
    """The texts of h2."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self._inside = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag == "h2"

    def handle_data(self, data: str) -> None:
        if self._inside and data.strip():
            self.found.append(data.strip())


def written(folder: Path, evidence: Evidence, picture: bool = True) -> tuple[Page, str]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(evidence.model_dump_json())
    if picture:
        (folder / "images.png").write_bytes(PNG)
    page = write_evidence_report(folder)
    assert page == folder / "report.html"
    html = page.read_text(encoding="utf-8")
    return Page(html), html


SHAPES = {
    "full": made.full(),
    "minimal": made.minimal(),
    "nothing": made.evidence([], setting=made.setting(seeds=[])),
    "one class, no test image": made.evidence(
        [made.result(Cell(protection="x"), 0.0, n_test=0)], setting=made.setting(classes=1, test_images=0)
    ),
    "nothing protected": made.evidence(
        made.cells((0,), 0.5, protection="clean"),
        protections=[
            made.facts(
                "exact", images=3, left_out=3, beside=0, restored=0, identical=0, psnr_mean=0.0, psnr_std=0.0,
                psnr=Histogram(edges=[0, 1], counts=[0]), ssim=Histogram(edges=[0, 1], counts=[0]), ssim_mean=0.0,
                ssim_std=0.0,
            )
        ],
    ),
    "odd names": made.evidence(
        made.cells((0, 1), 0.3, protection="a,b.c=<i>1</i>") + made.cells((0, 1), 0.6, protection="clean"),
        command="<script>alert(1)</script>",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Page, str]]:
    """Every shape, written once: matplotlib takes a second or two for the full one."""
    return {
        shape: written(tmp_path_factory.mktemp("page"), evidence, picture=shape == "full")
        for shape, evidence in SHAPES.items()
    }


Pages = dict[str, tuple[Page, str]]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_page_is_well_formed_and_refers_to_nothing_outside_itself(shape: str, pages: Pages) -> None:
    page, html = pages[shape]
    assert page.misnested == []
    assert page.open == []
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("href", "src", "xlink:href", "action", "data"):
                assert value is not None
                assert value.startswith(("data:", "#")), (tag, name, value[:40])
    assert "://" not in html
    assert "@import" not in html
    assert all(target.startswith(("#", "data:")) for target in re.findall(r"url\(['\"]?([^)]*)", html))
    assert not re.search(r"\b(nan|inf|None|Infinity)\b", page.text), shape
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_same_results_give_the_same_bytes(pages: Pages, tmp_path: Path) -> None:
    assert written(tmp_path, SHAPES["full"])[1] == pages["full"][1]
    assert accuracy_figure(SHAPES["minimal"]) == accuracy_figure(SHAPES["minimal"])


def test_a_full_preset_has_all_sections_and_a_small_one_only_its_own(pages: Pages) -> None:
    assert set(Headings(pages["full"][1]).found) == SECTIONS
    assert Headings(pages["minimal"][1]).found == ["Trained on as published", "Published figures", "How it was made"]


def test_the_page_holds_the_figures(pages: Pages) -> None:
    page, _ = pages["full"]
    for expected in (
        "60.5 ± 0.5",  # clean: 60, 60.5 and 61
        "20.5 ± 0.5",
        "86.21", "38.23", "85.86",  # the paper
        "published test",
        "84.08", "83.90", "18.70",  # APBench's and Image Shortcut Squeezing's TAP, Learnability Lock
        "ResNet-18, 200 epochs of SGD, 50,000 images",
        "5,000 of 5,000",
        "3 of 5,000",
        "30.25 ± 0.75",
        "0.9444 ± 0.0222",
        "1.00 %",  # beside
        "NotProtected 40, WrongKey 200",
        "Keys: of 750 misuses 740 were refused, 10 gave the clean image and nothing else; none gave a wrong image.",
        "dvc repro evaluate-protection",
        "3,210 s by the clock; 310 s of training in all",
        "made by a test",
        "packages.torch",
        "exact.set.amplitude",
        "keep it as private as the clean data set",
        "4,000",  # images of the rest at a share of 20 %
        "56.0 (56.0)",
        "small ViT",
    ):  # fmt: skip
        assert expected in page.text, expected


def test_names_from_outside_are_text_never_markup(pages: Pages) -> None:
    page, html = pages["odd names"]
    assert "<script" not in html
    assert "<i>" not in html
    assert "<script>alert(1)</script>" in page.text
    assert "a,b.c=<i>1</i>" in page.text


def test_colours_follow_the_page(pages: Pages) -> None:
    _, html = pages["full"]
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
    assert "var(--ink)" in html[html.index("<svg") :]
    assert "#010203" not in html
    assert "#040506" not in html


def test_out_is_another_place(tmp_path: Path) -> None:
    written(tmp_path, made.minimal(), picture=False)
    out = tmp_path / "else.html"
    assert write_evidence_report(tmp_path, out) == out
    assert out.read_bytes() == (tmp_path / "report.html").read_bytes()


def test_results_that_are_missing_or_other_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"results\.json is missing"):
        write_evidence_report(tmp_path)
    (tmp_path / "results.json").write_text('{"format": "dmcp-evidence/9"}')
    with pytest.raises(DatasetError, match="no evidence: format"):
        read_evidence(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_the_plot_stands_alone() -> None:
    svg = accuracy_figure(made.full())
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    text = " ".join(root.itertext())
    for expected in ("clean", "exact", "paper", "60.5", "20.5", "45.5", "TAP", "6.3", "Published, not measured here"):
        assert expected in text, expected
    assert b"var(--" not in svg  # there is no page whose colours it could take
    assert b"#010203" not in svg
    assert "mean ± deviation of 3 seeds" in text
    assert "one seed" in " ".join(ElementTree.fromstring(accuracy_figure(made.minimal())).itertext())
    with pytest.raises(ValueError, match="no cell without"):
        accuracy_figure(SHAPES["nothing"])


def test_the_terminal_has_the_pages_tables(pages: Pages) -> None:
    page, _ = pages["full"]
    tables = evidence_tables(made.full())
    assert len(tables) == 8
    for table in tables:
        assert all(len(row) == len(table.columns) for row in table.rows), table.title
        assert set(table.right) <= set(table.columns)
        for row in table.rows:
            for cell in row:
                assert cell.replace("\N{NO-BREAK SPACE}", " ") in page.text
    assert [table.columns[0] for table in evidence_tables(made.minimal())] == ["trained on"]
    assert evidence_tables(SHAPES["nothing"]) == []
    assert any("exact fails: accuracy comes back" in sentence for sentence in evidence_words(made.full()))
