import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.learning.augmentation import crop_and_flip, crop_padding, plan_epoch


@given(st.integers(1, 200), st.integers(0, 2**63), st.integers(1, 500))
def test_an_epoch_is_decided_by_seed_and_number(images: int, seed: int, epoch: int) -> None:
    plan = plan_epoch(images, seed, epoch, (4, 2))
    again = plan_epoch(images, seed, epoch, (4, 2))
    assert sorted(plan.order.tolist()) == list(range(images))
    for one, other in zip(vars(plan).values(), vars(again).values(), strict=True):
        assert torch.equal(one, other)
    assert plan.rows is not None and plan.columns is not None
    assert plan.rows.min() >= 0 and plan.rows.max() <= 8
    assert plan.columns.min() >= 0 and plan.columns.max() <= 4


def test_epochs_and_seeds_differ_and_augmentation_leaves_the_order_alone() -> None:
    orders = {tuple(plan_epoch(50, seed, epoch, None).order.tolist()) for seed in range(4) for epoch in range(1, 5)}
    assert len(orders) == 16
    assert torch.equal(plan_epoch(50, 0, 1, None).order, plan_epoch(50, 0, 1, (4, 4)).order)
    assert plan_epoch(50, 0, 1, None).mirrored is None


def test_all_shifts_and_both_sides_come_equally_often() -> None:
    plan = plan_epoch(45_000, 3, 1, (4, 4))
    assert plan.rows is not None and plan.mirrored is not None
    shares = np.bincount(plan.rows.numpy(), minlength=9) / 45_000
    assert np.abs(shares - 1 / 9).max() < 0.01
    assert abs(plan.mirrored.float().mean().item() - 0.5) < 0.01


@given(st.data())
def test_crop_and_flip_is_what_numpy_says_image_by_image(data: st.DataObject) -> None:
    n, height, width = (data.draw(st.integers(1, k)) for k in (5, 12, 12))
    pad = (data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3)))
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    images = random.integers(0, 256, (n, height, width, 3), dtype=np.uint8)
    rows, columns = (random.integers(0, 2 * p + 1, n) for p in pad)
    mirrored = random.random(n) < 0.5
    made = crop_and_flip(
        torch.from_numpy(images), torch.from_numpy(rows), torch.from_numpy(columns), torch.from_numpy(mirrored), pad
    )
    for i in range(n):
        padded = np.pad(images[i], ((pad[0],) * 2, (pad[1],) * 2, (0, 0)))
        expected = padded[rows[i] : rows[i] + height, columns[i] : columns[i] + width]
        np.testing.assert_array_equal(made[i].numpy(), expected[:, ::-1] if mirrored[i] else expected)


def test_padding_is_an_eighth_and_at_least_a_pixel() -> None:
    assert crop_padding(32, 64) == (4, 8)
    assert crop_padding(16, 7) == (2, 1)
