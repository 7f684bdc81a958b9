"""Recipes: everything that decides how a network is trained, but for the network, the data and the seed."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, OneCycleLR

from storage.errors import ParameterError

OptimizerName = Literal["adam", "sgd"]
Schedule = Literal["constant", "cosine", "onecycle"]
Augment = Literal["none", "crop-flip"]


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        optimizer: "adam", or "sgd" with Nesterov momentum.
        lr: learning rate; with the schedules "cosine" and "onecycle" its highest value.
        momentum: of SGD; Adam keeps 0.9 and 0.999.
        weight_decay: L2 penalty of every parameter.
        schedule: of the learning rate, step by step.
        batch_size: images a step.
        epochs: passes over the training images.
        augment: "crop-flip": shift by up to an eighth of the side, zeros outside, and mirror every second image.
        label_smoothing: share of the target spread evenly over the classes.
    """

    name: str
    optimizer: OptimizerName
    lr: float
    momentum: float
    weight_decay: float
    schedule: Schedule
    batch_size: int
    epochs: int
    augment: Augment
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        for name, kind in (("optimizer", OptimizerName), ("schedule", Schedule), ("augment", Augment)):
            if getattr(self, name) not in get_args(kind):
                choices = ", ".join(get_args(kind))
                raise ParameterError(f"{name} is {getattr(self, name)!r}.", f"Choose one of {choices}.")
        for name, low, high in (
            ("lr", 1e-9, 100.0),
            ("momentum", 0, 0.9999),
            ("weight_decay", 0, 1),
            ("batch_size", 2, 100_000),  # batch normalisation needs two images
            ("epochs", 1, 10_000),
            ("label_smoothing", 0, 0.9),
        ):
            if not low <= getattr(self, name) <= high:
                raise ParameterError(f"{name} is {getattr(self, name)}.", f"Choose a value from {low:g} to {high:g}.")

    def with_overrides(
        self, epochs: int | None = None, lr: float | None = None, batch_size: int | None = None
    ) -> "Recipe":
        """The recipe with the values that are not None in place of its own.

        Raises:
            ParameterError: a value is out of range.
        """
        given = {"epochs": epochs, "lr": lr, "batch_size": batch_size}
        return replace(self, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


RECIPES = {
    # The paper: ResNet-18 from scratch, no more about it. What it leaves open is torch's default.
    "paper": Recipe(
        "paper", "adam", lr=0.01, momentum=0.9, weight_decay=0.0, schedule="constant",
        batch_size=128, epochs=80, augment="none",
    ),
    # What is customary for CIFAR-10, shortened by one-cycle (Smith and Topin, 2018).
    "modern": Recipe(
        "modern", "sgd", lr=0.1, momentum=0.9, weight_decay=5e-4, schedule="onecycle",
        batch_size=128, epochs=30, augment="crop-flip",
    ),
}  # fmt: skip


def recipe_named(
    name: str, epochs: int | None = None, lr: float | None = None, batch_size: int | None = None
) -> Recipe:
    """A recipe by name, with overrides.

    Raises:
        ParameterError: an unknown name, or a value out of range.
    """
    if name not in RECIPES:
        raise ParameterError(f"The recipe {name!r} is unknown.", f"Choose one of {', '.join(RECIPES)}.")
    return RECIPES[name].with_overrides(epochs, lr, batch_size)


def make_optimizer(recipe: Recipe, parameters: Iterable[torch.nn.Parameter]) -> Optimizer:
    """The recipe's optimiser, in one fused pass over each parameter."""
    if recipe.optimizer == "adam":
        return Adam(parameters, recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    nesterov = recipe.momentum > 0
    return SGD(parameters, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=nesterov, fused=True)


def make_schedule(recipe: Recipe, optimizer: Optimizer, steps: int) -> LRScheduler:
    """The recipe's learning rate over `steps` steps in all; to be stepped after each."""
    if recipe.schedule == "onecycle":  # with fewer steps than 5 the rise, a quarter of them, has no length
        return OneCycleLR(optimizer, recipe.lr, total_steps=max(5, steps), pct_start=0.25, cycle_momentum=False)
    if recipe.schedule == "cosine":
        return CosineAnnealingLR(optimizer, max(1, steps))
    return LambdaLR(optimizer, lambda step: 1.0)
