"""Linear maps in float32 by oneDNN, which on a CPU without Intel's name is twice as fast as MKL.

PyTorch sends float32 products of a CPU to MKL, whose best kernels run on Intel processors only;
oneDNN, in the same build of PyTorch, has AVX-512 kernels for all. Sums are taken in another order:
results differ in the last bits. Elsewhere (float64, accelerators, builds without oneDNN) these are
PyTorch's own functions.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

Activation = Callable[[Tensor], Tensor]


def _gelu_new(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Activation] = {"gelu_new": _gelu_new, "gelu": F.gelu, "relu": F.relu, "silu": F.silu}
ONEDNN_NAMES = {_gelu_new: ("gelu", "tanh"), F.gelu: ("gelu", "none"), F.relu: ("relu", ""), F.silu: ("swish", "")}


def product(
    x: Float[Tensor, "row d_in"], weight: Float[Tensor, "d_out d_in"], bias: Float[Tensor, " d_out"] | None = None
) -> Float[Tensor, "row d_out"]:
    """`F.linear` of a matrix, outside autograd."""
    if by_onednn(x):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def activated(
    x: Float[Tensor, "row d_in"], weight: Float[Tensor, "d_out d_in"], bias: Float[Tensor, " d_out"], act: Activation
) -> Float[Tensor, "row d_out"]:
    """`act` of `product`, outside autograd; oneDNN takes it in the product's own pass, in a quarter of the time."""
    if by_onednn(x) and act in ONEDNN_NAMES:
        name, form = ONEDNN_NAMES[act]
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, name, [], form)
    return act(product(x, weight, bias))


def linear(
    x: Float[Tensor, "*batch d_in"], weight: Float[Tensor, "d_out d_in"], bias: Float[Tensor, " d_out"]
) -> Float[Tensor, "*batch d_out"]:
    """`F.linear`, with gradients."""
    return _Linear.apply(x, weight, bias) if by_onednn(x) else F.linear(x, weight, bias)


def by_onednn(x: Tensor) -> bool:
    """Whether products with `x` go through oneDNN."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()  # the compiler has its own oneDNN products
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        ctx.save_for_backward(rows, weight)
        return product(rows, weight, bias).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        shape, grad = grad.shape, grad.reshape(-1, grad.shape[-1])
        return (
            product(grad, weight.T).view(*shape[:-1], -1) if of_x else None,
            weight_gradient(rows, grad) if of_weight else None,
            grad.sum(0) if of_bias else None,
        )


def weight_gradient(rows: Float[Tensor, "row d_in"], grad: Float[Tensor, "row d_out"]) -> Float[Tensor, "d_out d_in"]:
    """grad.T @ rows; oneDNN copies a transposed first factor, so that is the smaller of the two."""
    return product(grad.T, rows.T) if grad.shape[1] < rows.shape[1] else product(rows.T, grad.T).T


def product_type(x: Tensor) -> torch.dtype:
    """The type that autocast gives to factors like `x`; its own without autocast."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
