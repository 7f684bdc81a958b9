import pytest

from benchmarks.compare_protection import markdown, method_of
from storage.errors import ParameterError
from tasks.method.exact import ExactParameters
from tasks.protect import ExactMethod, PaperMethod


def test_a_row_is_a_profile_with_other_values() -> None:
    method = method_of("exact,set.amplitude=8,perturbation.smoothing=0.5")
    assert isinstance(method, ExactMethod)
    assert method.set == ExactParameters(amplitude=8) and method.perturbation.smoothing == 0.5
    assert isinstance(method_of("paper,transform.block=4,transform.classes=4"), PaperMethod)
    with pytest.raises(ParameterError, match="amplitude"):
        method_of("exact,set.amplitude=300")


def test_the_table_has_means_and_deviations() -> None:
    models = {f"resnet18-{seed}": {"last": last, "peak": 0.5} for seed, last in enumerate((0.2, 0.4))}
    rows = {"clean": {"models": models}, "exact": {"models": models, "psnr": 26.0, "beside": 0.02}}
    table = markdown({"rows": rows}).splitlines()
    assert table[2] == "| clean | resnet18 |  |  | 30.0 ± 14.1 | 50.0 ± 0.0 | 2 |"
    assert table[3] == "| exact | resnet18 | 26.00 | 2.00 | 30.0 ± 14.1 | 50.0 ± 0.0 | 2 |"
