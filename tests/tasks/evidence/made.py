"""Evidence made by code: accuracies that are chosen, with a curve that leads to them."""

import hashlib
from collections.abc import Iterable
from typing import Any

from tasks.evidence.records import Cell, CellResult, Evidence, Histogram, KeyTrial, ProtectionFacts, Setting

EPOCHS = 4


def result(
    cell: Cell, accuracy: float, *, peak: float | None = None, n_train: int = 5000, n_test: int = 10_000
) -> CellResult:
    """One cell; seeds differ by half a point."""
    last = round(accuracy + 0.005 * cell.seed, 6)
    best = max(last, peak or 0.0)
    history = [round(best * part, 6) for part in (0.4, 0.7, 1.0)] + [last]
    # What came back bit for bit trains the models of the clean images.
    trained_on = cell.model_copy(update={"protection": "clean"}) if cell.protection.endswith("-recovered") else cell
    digest = hashlib.sha256(trained_on.model_dump_json().encode()).hexdigest()
    return CellResult(
        cell=cell, digest=digest, train_accuracy=0.99, test_accuracy=last, peak_test_accuracy=best,
        peak_epoch=3 if best > last else EPOCHS, history=history, n_train=n_train, n_test=n_test, seconds=10.0,
        device="cpu", precision="float32",
    )  # fmt: skip


def cells(seeds: Iterable[int], accuracy: float, peak: float | None = None, **asked: Any) -> list[CellResult]:
    """The same cell with several seeds."""
    return [result(Cell(seed=seed, **asked), accuracy, peak=peak) for seed in seeds]


def facts(name: str, **over: Any) -> ProtectionFacts:
    """A protection of 5,000 images, all restored bit for bit, 50 of them with a payload beside."""
    values: dict[str, Any] = {
        "name": name, "parameters": {"profile": "exact", "exact": {"set": {"amplitude": 8}}}, "images": 5000,
        "left_out": 0, "beside": 50, "restored": 5000, "identical": 5000, "refused": 0, "max_error": 0,
        "psnr_mean": 30.25, "psnr_std": 0.75, "psnr": Histogram(edges=[28, 29, 30, 31, 32], counts=[10, 40, 100, 50]),
        "ssim_mean": 0.9444, "ssim_std": 0.0222, "ssim": Histogram(edges=[0.8, 0.9, 1.0], counts=[20, 180]),
        "digest": "d" * 32, "seconds": 12.5,
    }  # fmt: skip
    return ProtectionFacts(**values | over)


def trial(name: str, protection: str = "exact", **over: Any) -> KeyTrial:
    """250 tries, all refused."""
    values: dict[str, Any] = {
        "trial": name, "protection": protection, "tried": 250, "refused": 250, "exact": 0, "wrong": 0,
        "reasons": {"WrongKey": 250},
    }  # fmt: skip
    return KeyTrial(**values | over)


def setting(**over: Any) -> Setting:
    """CIFAR-10, scaled."""
    values: dict[str, Any] = {
        "dataset": "cifar10", "preset": "quick", "images": 5000, "test_images": 10_000, "classes": 10,
        "recipe": "modern", "epochs": EPOCHS, "stem": "imagenet", "seeds": [0, 1, 2],
        "surrogate": {"architecture": "resnet18", "epochs": 8}, "surrogate_accuracy": 0.62,
    }  # fmt: skip
    return Setting(**values | over)


def evidence(found: list[CellResult], **over: Any) -> Evidence:
    """All of a preset around some cells."""
    values: dict[str, Any] = {
        "setting": setting(), "protections": [], "cells": found, "keys": [],
        "machine": {"Processor": "made by a test", "packages": {"torch": "2.x"}},
        "command": "dvc repro evaluate-protection", "seconds": 3210.0,
    }  # fmt: skip
    return Evidence(**values | over)


def full() -> Evidence:
    """Two protections, all kinds of rows. `exact` falls to JPEG and to the learned inverse, `paper` is weak."""
    main, side = (0, 1, 2), (0,)
    found = [
        *cells(main, 0.60, protection="clean"),
        *cells(main, 0.20, 0.25, protection="exact"),
        *cells(main, 0.60, protection="exact-recovered"),
        *cells(main, 0.45, 0.47, protection="paper"),
        *cells(side, 0.55, protection="clean", countermeasure="jpeg-10"),
        *cells(side, 0.52, protection="exact", countermeasure="jpeg-10"),
        *cells(side, 0.50, protection="paper", countermeasure="jpeg-10"),
        *cells(side, 0.58, protection="clean", countermeasure="grayscale"),
        *cells(side, 0.23, 0.26, protection="exact", countermeasure="grayscale"),
        *cells(side, 0.47, protection="paper", countermeasure="grayscale"),
        *cells(side, 0.50, protection="exact", countermeasure="adversarial"),
        *cells(side, 0.22, 0.25, protection="exact", attack="class-average"),
        *cells(side, 0.48, protection="exact", attack="learned-inverse"),
        *cells(side, 0.55, protection="clean", architecture="vit_small"),
        *cells(side, 0.40, protection="exact", architecture="vit_small"),
    ]
    for share in (0.2, 0.4, 0.6, 0.8):
        found += cells(side, 0.60 - 0.2 * share, protection="exact", share=share)
        rest = Cell(protection="exact", share=share, rest_only=True)
        found.append(result(rest, 0.60 - 0.25 * share, n_train=round(5000 * (1 - share))))
    return evidence(
        found,
        protections=[facts("exact"), facts("paper", beside=0, identical=3, max_error=1, psnr_mean=24.5)],
        keys=[
            trial("wrong-key"),
            trial("one-bit-wrong-key", "paper"),
            trial("replayed-payload", refused=240, exact=10, reasons={"NotProtected": 40, "WrongKey": 200}),
        ],
    )


def minimal() -> Evidence:
    """What the preset `search` has: one protection, one seed, nothing to compare it with."""
    return evidence(cells((0,), 0.30, protection="chosen"), setting=setting(preset="search", seeds=[0]))
