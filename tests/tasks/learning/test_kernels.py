import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.learning.kernels import matmul_convolution, rectify_


@settings(max_examples=60)
@given(st.data())
def test_the_matrix_product_is_the_convolution(data: st.DataObject) -> None:
    kernel = (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3)))
    padding = (data.draw(st.integers(0, kernel[0] - 1)), data.draw(st.integers(0, kernel[1] - 1)))
    stride = (data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2)))
    size = (data.draw(st.integers(kernel[0], 6)), data.draw(st.integers(kernel[1], 6)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    images = torch.rand(2, 5, *size, generator=generator, dtype=torch.float64)
    weight = torch.rand(4, 5, *kernel, generator=generator, dtype=torch.float64)
    results = []
    for convolve in (matmul_convolution, lambda x, w, s, p: F.conv2d(x, w, None, s, p)):
        x, w = images.clone().requires_grad_(), weight.clone().requires_grad_()
        made = convolve(x, w, stride, padding)
        (made * made.detach().cos()).sum().backward()
        results.append((made.detach(), x.grad, w.grad))
    for ours, theirs in zip(*results, strict=True):
        # The gradient of strided images is summed in float32.
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_autocast_decides_the_type_and_gradients_keep_theirs() -> None:
    images = torch.rand(2, 8, 2, 2, requires_grad=True)
    weight = torch.rand(8, 8, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        made = matmul_convolution(images, weight, (1, 1), (1, 1))
    assert made.dtype == torch.bfloat16
    made.float().sum().backward()
    assert images.grad is not None and images.grad.dtype == torch.float32
    assert weight.grad is not None and weight.grad.dtype == torch.float32
    expected = F.conv2d(images, weight, None, 1, 1)
    torch.testing.assert_close(made.float(), expected, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rectify_is_relu_in_place_and_its_gradient(dtype: torch.dtype) -> None:
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), 1e-40, -1e-40, 3.0, -3.0])
    values = torch.cat([special, torch.randn(1000)]).to(dtype)
    ours, theirs = values.clone().requires_grad_(), values.clone().requires_grad_()
    scaled = ours * 1
    made = rectify_(scaled)
    assert made.data_ptr() == scaled.data_ptr()
    expected = torch.relu(theirs)
    assert torch.equal(made, expected)
    upstream = torch.randn(len(values)).to(dtype)
    made.backward(upstream)
    expected.backward(upstream)
    assert ours.grad is not None and theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)
