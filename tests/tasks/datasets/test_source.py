import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import NotFound
from tasks.datasets import NAMES, get
from tasks.datasets.source import CommonParameters, choose


@pytest.mark.parametrize("name", NAMES)
def test_every_name_has_a_module(name: str) -> None:
    module = get(name)
    assert issubclass(module.Parameters, CommonParameters)
    assert callable(module.open_source)


@pytest.mark.parametrize("name", ["mnist", "source", "../sample", ""])
def test_other_names_have_none(name: str) -> None:
    with pytest.raises(NotFound):
        get(name)


@given(st.lists(st.integers(0, 4), max_size=60), st.none() | st.integers(1, 70))
def test_choice_is_balanced_and_takes_the_first(labels: list[int], limit: int | None) -> None:
    chosen = choose(labels, limit)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(len(labels), limit or len(labels))
    taken = [labels[i] for i in chosen]
    for one in set(labels):
        of_one = [i for i, label in enumerate(labels) if label == one]
        assert [i for i in chosen if labels[i] == one] == of_one[: taken.count(one)]
        if taken.count(one) < len(of_one):  # there were more: then no class has two more than this one
            assert all(taken.count(other) <= taken.count(one) + 1 for other in set(labels))
