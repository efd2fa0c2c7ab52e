"""Linear layers as a CPU reads them the fastest, for a model that is only sampled from.

    model = pack(model, torch.bfloat16, rows=8)  # or torch.float32, or torch.int8

torch multiplies by a weight matrix as it lies, row after row. Its kernels of oneDNN are up to twice
as fast with a matrix that was brought into their own order once, unless it is small. In bfloat16 a
single row is faster yet with torch's own product of a matrix and a vector.
"""

import functools
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from folio.cli import UserError

SMALLEST = 2 ** 16  # numbers in a matrix; to call oneDNN takes longer than what it saves below


def pack(model, dtype, rows=1):
    """The model, on a CPU, with its numbers in this torch.dtype and its linear layers replaced, in
    place, by ones that are the fastest for so many rows, if the CPU has kernels for them.
    torch.int8 is for the linear layers only, the rest is float32; UserError without kernels."""
    able = has_kernels(dtype)
    if dtype == torch.int8 and not able:
        raise UserError('dtype=int8 does not work here: this torch has no oneDNN')
    numbers = torch.float32 if dtype == torch.int8 else dtype
    kind, smallest = kind_of_layer(dtype, rows)
    for module in model.modules() if able else []:
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and child.weight.numel() >= smallest:
                child.to(numbers)  # one after another, which takes less memory
                setattr(module, name, kind(child.weight.detach(), child.bias))
    return model.to(numbers)


def has_kernels(dtype):
    """Whether oneDNN is there, and works in this format on this CPU."""
    return torch.backends.mkldnn.is_available() and (
        dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported())


def kind_of_layer(dtype, rows):
    """(what makes a layer of weight and bias, the fewest weights for which it is faster)."""
    if dtype == torch.int8:
        return Int8Linear, 0
    if dtype == torch.bfloat16 and rows == 1:
        return VectorLinear, 0
    return functools.partial(PackedLinear, rows), SMALLEST


class PackedLinear(nn.Module):
    """A linear layer, x (..., in) -> (..., out), whose weights lie in oneDNN's order."""

    def __init__(self, rows, weight, bias=None):
        super().__init__()
        self.bias = bias
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, rows)

    def forward(self, x):
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, 'none', [], '')


class VectorLinear(nn.Module):
    """A linear layer, x (..., in) -> (..., out), that without oneDNN multiplies a single row."""

    def __init__(self, weight, bias=None):
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x):
        if x.numel() > x.size(-1):
            return F.linear(x, self.weight, self.bias)
        torch.backends.mkldnn.enabled = False
        try:
            y = torch.mv(self.weight, x.flatten())
        finally:
            torch.backends.mkldnn.enabled = True
        y = y if self.bias is None else y.add_(self.bias)
        return y.view(*x.shape[:-1], -1)


class Int8Linear(nn.Module):
    """A linear layer, x (..., in) -> (..., out), that multiplies whole numbers from -127 to 127:
    each row of weights has a scale of its own, and so has each token of x."""

    def __init__(self, weight, bias=None):
        super().__init__()
        self.bias = bias
        self.weight, self.scale = to_int8(weight)
        self.scale = self.scale.t()  # (1, out)

    def forward(self, x):
        whole, scale = to_int8(x.flatten(0, -2))
        y = (torch._int_mm(whole, self.weight.t()) * self.scale).mul_(scale)
        y = y if self.bias is None else y.add_(self.bias)
        return y.view(*x.shape[:-1], -1)


def to_int8(x):
    """(whole, scale) of x (N, in): integers from -127 to 127, and a factor for each row, (N, 1)."""
    scale = torch.linalg.vector_norm(x, math.inf, dim=1, keepdim=True) / 127
    return (x / scale).nan_to_num_().round_().to(torch.int8), scale  # NaN: a row of zeros
