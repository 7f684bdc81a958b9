import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from storage.errors import DatasetError
from storage.manifest import read_manifest
from storage.png import encode_png
from storage.shards import Sample, read_shard, write_shard
from tasks.evaluate import evaluate
from tasks.fidelity import choose_sample, compare_variants
from tasks.method.exact import ExactProfile
from tasks.method.paper import PaperProfile
from tasks.method.profiles import Profile
from tasks.method.seal import DataKey
from tasks.metrics import read_evaluation
from tasks.restore import restore_samples
from tasks.verdict import difference, verdict
from tests.tasks.evaluation_folder import (
    CLASSES,
    PARAMS,
    clean_images,
    make_folder,
    write_json,
    write_model,
    write_variant,
)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "tiny", left_out=[2])


def test_errors_and_quality_to_the_last_digit(folder: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    evaluation = evaluate(folder, PARAMS, progress=lambda *what: seen.append(what))
    recovered, protected = evaluation.fidelity["recovered"], evaluation.fidelity["protected"]
    # Every sample of `recovered` differs by exactly one, of `protected` by exactly ten.
    assert (recovered.images, recovered.bit_exact, recovered.max_sample_error) == (7, 0, 1)
    assert recovered.mean_sample_error == 1.0
    assert recovered.quality.psnr_mean == pytest.approx(20 * np.log10(255))
    assert recovered.quality.psnr_std == pytest.approx(0, abs=1e-9)
    assert (protected.max_sample_error, protected.mean_sample_error) == (10, 10.0)
    assert protected.quality.psnr_mean == pytest.approx(20 * np.log10(25.5))
    assert protected.quality.images == 7
    assert 0 < protected.quality.ssim_mean < recovered.quality.ssim_mean < 1
    assert seen == [("train-000000.tar", 4, 8), ("train-000001.tar", 8, 8)]


def test_counts_and_reasons(folder: Path) -> None:
    counts = evaluate(folder, PARAMS).counts
    assert (counts.clean, counts.protected, counts.recovered, counts.left_out, counts.refused) == (8, 7, 7, 1, 0)
    assert counts.left_out_reasons == {"nothing fitted <here>": 1}


def test_accuracies_are_means_and_sample_deviations_over_seeds(folder: Path) -> None:
    evaluation = evaluate(folder, PARAMS)
    protected = evaluation.accuracy["protected"]
    assert protected.seeds == [0, 1]
    assert protected.last.mean == pytest.approx(0.52)
    assert protected.last.std == pytest.approx(0.04 / 2**0.5)
    assert protected.peak.mean == pytest.approx(0.53)
    assert protected.seconds == 20.0
    assert evaluation.accuracy["recovered"].last.std == 0.0
    assert evaluation.setting.epochs == 2


def test_bit_exact_recovery(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny", recover=lambda image: image)
    evaluation = evaluate(folder, SimpleNamespace(quality_images=3, seed=1, grid_images=2))
    recovered = evaluation.fidelity["recovered"]
    assert recovered.bit_exact == recovered.images == 8
    assert (recovered.max_sample_error, recovered.mean_sample_error) == (0, 0.0)
    assert recovered.quality.identical_share == 1.0
    assert recovered.quality.psnr_mean is None
    assert evaluation.digests["clean"] == evaluation.digests["recovered"] != evaluation.digests["protected"]
    rows = table(folder / "plots" / "errors.csv")
    assert [row["error"] for row in rows] == [str(error) for error in range(11)]
    assert (rows[0]["recovered"], rows[0]["recovered_images"], rows[0]["protected"]) == (
        "1.00000000",
        "8",
        "0.00000000",
    )
    assert (rows[10]["protected"], rows[10]["protected_images"]) == ("1.00000000", "8")


def test_one_wrong_sample_among_all_is_found_though_no_image_is_sampled(tmp_path: Path) -> None:
    images = clean_images()
    spoilt = [image.copy() for image in images]
    spoilt[5][7, 8, 2] += 33
    for name, content in (("clean", images), ("protected", images), ("recovered", spoilt)):
        write_variant(tmp_path / name, content)
    found = compare_variants(tmp_path, quality_images=0, seed=0).pairs["recovered"]
    assert found.errors.max_error == 33
    assert (found.errors.images, found.errors.exact) == (8, 7)
    assert found.quality.psnr == []


def test_written_files(folder: Path) -> None:
    evaluation = evaluate(folder, PARAMS)
    assert read_evaluation(folder) == evaluation
    assert json.loads((folder / "metrics" / "evaluation.json").read_text())["counts"]["protected"] == 7
    curves = table(folder / "plots" / "curves.csv")
    assert list(curves[0]) == ["epoch", "variant", "seed", "train_loss", "train_accuracy", "test_accuracy"]
    assert len(curves) == 3 * 2 * 2
    test_accuracy = table(folder / "plots" / "test_accuracy.csv")
    assert [row["epoch"] for row in test_accuracy] == ["1", "2"]
    assert float(test_accuracy[1]["protected"]) == pytest.approx(0.52)
    assert list(test_accuracy[0]) == ["epoch", "clean", "protected", "recovered"]
    assert float(table(folder / "plots" / "train_accuracy.csv")[0]["clean"]) == 0.5
    confusion = table(folder / "plots" / "confusion-protected.csv")
    assert len(confusion) == 20
    assert confusion[1] == {"actual": CLASSES[1], "predicted": CLASSES[0]}
    assert len(table(folder / "plots" / "accuracy.csv")) == 6
    assert table(folder / "plots" / "payload.csv")[1] == {"from_bytes": "20.0", "to_bytes": "30.0", "images": "3"}
    assert table(folder / "plots" / "rungs.csv")[1] == {"rung": "one more plane", "images": "1"}
    quality = table(folder / "plots" / "quality.csv")
    assert {row["key"] for row in quality} == {f"{i:04d}" for i in range(8) if i != 2}
    assert (folder / "plots" / "images.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_evaluation_twice_is_the_same_bytes(folder: Path) -> None:
    def everything() -> dict[str, bytes]:
        evaluate(folder, SimpleNamespace(quality_images=3, seed=5, grid_images=2))
        paths = [*(folder / "plots").iterdir(), folder / "metrics" / "evaluation.json"]
        return {path.name: path.read_bytes() for path in paths}

    assert everything() == everything()


def test_only_the_named_seeds_count(folder: Path) -> None:
    write_model(folder, "clean", 7, 0.1)
    assert evaluate(folder, PARAMS, seeds=[1]).accuracy["clean"].last.mean == 0.82
    with pytest.raises(DatasetError, match="different seeds"):
        evaluate(folder, PARAMS)
    with pytest.raises(DatasetError, match=r"train-protected-7\.json is missing"):
        evaluate(folder, PARAMS, seeds=[7])


@pytest.mark.parametrize(("field", "value"), [("epochs", 3), ("recipe", "paper"), ("stem", "imagenet"), ("n_test", 5)])
def test_models_trained_in_different_ways_are_not_compared(folder: Path, field: str, value: object) -> None:
    write_model(folder, "recovered", 1, 0.81, **{field: value})
    with pytest.raises(DatasetError, match=f"different {field}"):
        evaluate(folder, PARAMS)


def test_a_record_that_lacks_a_field_is_named(folder: Path) -> None:
    write_json(folder / "metrics" / "train-clean-0.json", {"variant": "clean", "seed": 0})
    with pytest.raises(DatasetError, match=r"train-clean-0\.json.*train_accuracy"):
        evaluate(folder, PARAMS)
    write_model(folder, "clean", 0, 80.0)
    with pytest.raises(DatasetError, match="less than or equal to 1"):
        evaluate(folder, PARAMS)


def test_variants_of_another_run_are_refused(folder: Path) -> None:
    write_json(folder / "metrics" / "protect.json", {"images": 8, "protected": 8})
    with pytest.raises(DatasetError, match="belong to different runs"):
        evaluate(folder, PARAMS)
    write_shard(folder / "recovered" / "train-000000.tar", [Sample("9999", encode_png(clean_images()[0]), 0)])
    with pytest.raises(DatasetError, match="holds 9999"):
        evaluate(folder, PARAMS)


def test_another_size_and_changed_labels(folder: Path) -> None:
    path = folder / "recovered" / "train-000000.tar"
    first, *others = read_shard(path)
    write_shard(path, [Sample(first.key, first.png, 1), *others])
    assert compare_variants(folder, quality_images=0, seed=0).pairs["recovered"].labels_changed == 1
    write_shard(path, [Sample(first.key, encode_png(np.zeros((17, 16, 3), np.uint8)), 0), *others])
    with pytest.raises(DatasetError, match="0000 is 16x17 in the recovered variant and 16x16"):
        compare_variants(folder, quality_images=0, seed=0)


def test_the_sample_is_drawn_by_seed_without_repetition() -> None:
    drawn = choose_sample(1000, 100, 3)
    assert len(set(drawn.tolist())) == 100
    assert drawn.tolist() == sorted(drawn.tolist()) == choose_sample(1000, 100, 3).tolist()
    assert drawn.tolist() != choose_sample(1000, 100, 4).tolist()
    assert choose_sample(5, 100, 3).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("profile", "bound"), [(PaperProfile(), 2), (ExactProfile(), 0)], ids=["paper", "exact"])
def test_bounds_come_from_the_headers_of_really_protected_images(tmp_path: Path, profile: Profile, bound: int) -> None:
    key = DataKey(bytes(range(32)), "tiny")
    folder = make_folder(tmp_path / "tiny")
    random = np.random.default_rng(1)
    manifest = read_manifest(folder / "clean")
    for shard in manifest.shards:
        # The images of 16x16 pixels, one at a time, with a coarse disturbance in place of the perturbation.
        samples = read_shard(folder / "clean" / shard.name)[:3]
        images = np.stack([clean_images()[int(sample.key)] for sample in samples])
        wanted = images + np.repeat(np.repeat(random.integers(0, 3, (3, 4, 4, 3)) * 20, 4, 1), 4, 2).astype(np.uint8)
        ids = [key.image_id("train", sample.key) for sample in samples]
        labels = [sample.label for sample in samples]
        protected = profile.carry(list(profile.fit(images, wanted)), images, labels, ids, key)
        done = [Sample(s.key, encode_png(c.image, c.spilled), s.label) for s, c in zip(samples, protected, strict=True)]
        write_shard(folder / "protected" / shard.name, done)
        write_shard(folder / "recovered" / shard.name, restore_samples(done, lambda _: key).samples)
    found = compare_variants(folder, quality_images=0, seed=0)
    assert found.bounds.images == {bound: 6}
    assert (found.bounds.broken, found.bounds.unknown) == (0, 0)
    assert bound // 2 <= found.pairs["recovered"].errors.max_error <= bound
    write_shard(
        folder / "recovered" / "train-000000.tar", [Sample("0000", encode_png(clean_images()[0] + np.uint8(3)), 0)]
    )
    write_shard(folder / "protected" / "train-000001.tar", read_shard(folder / "clean" / "train-000001.tar"))
    found = compare_variants(folder, quality_images=0, seed=0)
    assert (found.bounds.broken, found.bounds.unknown) == (1, 3)


# --- the verdict -----------------------------------------------------------------------------------------------------


def test_difference_of_seeds_is_welch() -> None:
    first, second = [0.80, 0.82, 0.81], [0.50, 0.54, 0.52]
    from scipy.stats import ttest_ind

    found = difference(_accuracy(first), _accuracy(second), 1000)
    assert found.value == pytest.approx(-0.29)
    assert not found.within_noise
    interval = ttest_ind(second, first, equal_var=False).confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.basis == "3 seeds each"


def test_one_seed_knows_only_the_test_sets_error() -> None:
    found = difference(_accuracy([0.8]), _accuracy([0.79]), 1000)
    assert found.within_noise
    assert found.high - found.low == pytest.approx(2 * 1.96 * ((0.8 * 0.2 + 0.79 * 0.21) / 1000) ** 0.5)
    assert "one seed tells nothing" in found.basis


def _accuracy(last: list[float]):
    from tasks.evaluate import _accuracy as combine
    from tasks.metrics import TrainMetrics

    return combine(
        [
            TrainMetrics(
                variant="clean", seed=i, train_accuracy=1, test_accuracy=value, peak_test_accuracy=value, epochs=1,
                seconds=1, recipe="paper", architecture="resnet18", stem="small", n_train=8, n_test=1000,
            )
            for i, value in enumerate(last)
        ]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("protected", "words"),
    [
        (0.80, "An effect of protection is not shown"),
        (0.95, "Protection fails"),
        (0.74, "the protection is weak here"),
        (0.60, "keeps 33"),
        (0.40, "no better than guessing among 2 classes"),
    ],
)
def test_the_verdict_on_protection_follows_the_figures(folder: Path, protected: float, words: str) -> None:
    for seed, clean in enumerate((0.799, 0.801)):
        write_model(folder, "clean", seed, clean)
        write_model(folder, "protected", seed, protected + (seed - 0.5) * 0.001)
    assert words in verdict(evaluate(folder, PARAMS))[0]


def test_the_verdict_on_restoration_follows_the_figures(folder: Path) -> None:
    assert "within noise" in verdict(evaluate(folder, PARAMS))[1]
    for seed in (0, 1):
        write_model(folder, "clean", seed, 0.80 + seed * 0.001)
        write_model(folder, "recovered", seed, 0.70 + seed * 0.001)
    assert "is below that of clean ones" in verdict(evaluate(folder, PARAMS))[1]
