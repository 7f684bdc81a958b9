import pytest
import torch

from storage.errors import ParameterError
from tasks.learning.recipes import RECIPES, Recipe, make_optimizer, make_schedule, recipe_named


def rates(recipe: Recipe, steps: int) -> list[float]:
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = make_optimizer(recipe, [parameter])
    schedule = make_schedule(recipe, optimizer, steps)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        parameter.grad = torch.ones(2)
        optimizer.step()
        schedule.step()
    return seen


def test_paper_recipe_is_the_paper_s() -> None:
    paper = RECIPES["paper"]
    assert (paper.optimizer, paper.lr, paper.batch_size, paper.epochs) == ("adam", 0.01, 128, 80)
    assert (paper.augment, paper.schedule, paper.weight_decay, paper.label_smoothing) == ("none", "constant", 0.0, 0.0)
    optimizer = make_optimizer(paper, [torch.nn.Parameter(torch.zeros(1))])
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    assert rates(paper, 5) == [0.01] * 5


def test_modern_recipe_goes_up_and_down_once() -> None:
    modern = RECIPES["modern"]
    assert (modern.optimizer, modern.augment, modern.schedule) == ("sgd", "crop-flip", "onecycle")
    optimizer = make_optimizer(modern, [torch.nn.Parameter(torch.zeros(1))])
    assert isinstance(optimizer, torch.optim.SGD) and optimizer.param_groups[0]["nesterov"]
    seen = rates(modern, 40)
    top = seen.index(max(seen))
    assert seen[top] == pytest.approx(modern.lr, rel=0.02)
    assert seen[: top + 1] == sorted(seen[: top + 1])
    assert seen[top:] == sorted(seen[top:], reverse=True)
    assert seen[-1] < seen[0] < modern.lr / 10


def test_cosine_falls_to_nothing() -> None:
    recipe = Recipe("c", "sgd", 0.1, 0.9, 0.0, "cosine", 8, 1, "none")
    seen = rates(recipe, 20)
    assert seen[0] == 0.1 and seen == sorted(seen, reverse=True) and seen[-1] < 0.001


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("name", RECIPES)
def test_the_shortest_trainings_have_a_schedule(name: str, steps: int) -> None:
    assert all(rate > 0 for rate in rates(RECIPES[name], steps))


def test_overrides_replace_only_what_is_given() -> None:
    recipe = recipe_named("paper", epochs=3, lr=None, batch_size=64)
    assert (recipe.epochs, recipe.lr, recipe.batch_size, recipe.optimizer) == (3, 0.01, 64, "adam")
    assert recipe_named("paper") is not None and RECIPES["paper"].epochs == 80


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"lr": 0.0}, {"lr": float("nan")}, {"batch_size": 1}])
def test_values_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ParameterError):
        recipe_named("paper", **wrong)  # type: ignore[arg-type]


def test_unknown_recipe_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ParameterError, match="paper, modern"):
        recipe_named("best")


@pytest.mark.parametrize("steps", range(1, 9))
def test_the_shortest_trainings_have_a_schedule_too(steps: int) -> None:
    recipe = recipe_named("modern")
    optimizer = make_optimizer(recipe, [torch.nn.Parameter(torch.zeros(1))])
    schedule = make_schedule(recipe, optimizer, steps)
    for _ in range(steps):
        optimizer.step()
        schedule.step()
        assert 0 < optimizer.param_groups[0]["lr"] <= recipe.lr
