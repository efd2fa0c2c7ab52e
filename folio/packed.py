"""Linear layers as a CPU reads them the fastest, for a model that is only sampled from.

    model = pack(model, torch.bfloat16)  # or torch.float32, or torch.int8

torch multiplies by a weight matrix as it lies, row after row. Its kernels of oneDNN are up to twice
as fast with a matrix that was brought into their own order once.
"""

import torch
import torch.nn as nn

from folio.cli import UserError


def pack(model, dtype):
    """The model, on a CPU, with its numbers in this torch.dtype and its linear layers replaced, in
    place. With torch.int8 the linear layers alone are so, the rest is float32; UserError where
    there are no kernels for it."""
    able = torch.backends.mkldnn.is_available()
    if dtype == torch.int8 and not able:
        raise UserError('dtype=int8 does not work here: this torch has no oneDNN')
    model.to(torch.float32 if dtype == torch.int8 else dtype)
    kind = Int8Linear if dtype == torch.int8 else PackedLinear
    for module in list(model.modules()) if able else []:
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, kind(child.weight.detach(), child.bias))
    return model


class PackedLinear(nn.Module):
    """A linear layer, x (..., in) -> (..., out), whose weights lie in oneDNN's order."""

    def __init__(self, weight, bias=None):
        super().__init__()
        self.bias = bias
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight)

    def forward(self, x):
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, 'none', [], '')


class Int8Linear(nn.Module):
    """A linear layer, x (..., in) -> (..., out), that multiplies whole numbers from -127 to 127:
    each row of weights has a scale of its own, and so has each token of x."""

    def __init__(self, weight, bias=None):
        super().__init__()
        self.bias = bias
        self.scale = weight.abs().amax(dim=1).clamp(min=1e-30) / 127  # (out,)
        self.weight = (weight / self.scale[:, None]).round().to(torch.int8)

    def forward(self, x):
        rows = x.flatten(0, -2)
        scale = rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / 127
        whole = (rows / scale).round().to(torch.int8)
        y = torch._int_mm(whole, self.weight.t()) * (scale * self.scale)
        y = y if self.bias is None else y + self.bias
        return y.unflatten(0, x.shape[:-1])
