"""Linear layers as a CPU reads them: the same numbers, or nearly."""

import pytest
import torch
import torch.nn as nn

from folio import packed
from folio.cli import UserError
from folio.packed import pack

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason='needs oneDNN')
ERRORS = {torch.float32: 1e-6, torch.bfloat16: 0.01, torch.int8: 0.02}  # against the spread


def make(bias=True):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 48, bias=bias), nn.ModuleDict({'x': nn.Linear(48, 7)})['x'])


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('dtype', ERRORS)
@torch.no_grad()
def test_a_packed_model_computes_what_it_did(dtype, bias, monkeypatch):
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip('needs a CPU with bfloat16 kernels')
    monkeypatch.setattr(packed, 'SMALLEST', 0)
    x = torch.randn(3, 5, 64)
    expected = make(bias)(x)
    model = pack(make(bias), dtype)
    assert not any(isinstance(module, nn.Linear) for module in model.modules())
    y = model(x.to(torch.float32 if dtype == torch.int8 else dtype)).float()
    assert y.shape == (3, 5, 7)
    assert (y - expected).std() < ERRORS[dtype] * expected.std()


@torch.no_grad()
def test_a_single_row_in_bfloat16_is_the_row_of_many():
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip('needs a CPU with bfloat16 kernels')
    model, x = pack(make(), torch.bfloat16), torch.randn(4, 1, 64, dtype=torch.bfloat16)
    alone = torch.cat([model(row[None]) for row in x])
    assert torch.allclose(alone, model(x), atol=0.02) and torch.backends.mkldnn.enabled


@torch.no_grad()
def test_int8_rounds_each_token_by_itself():
    model, x = pack(make(), torch.int8), torch.randn(6, 64)
    x[3] *= 1000
    assert torch.equal(model(x)[:3], model(x[:3]))
    assert torch.isfinite(model(torch.zeros(1, 64))).all()


@torch.no_grad()
def test_without_kernels_the_layers_stay_and_int8_is_refused(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: False)
    assert isinstance(pack(make(), torch.bfloat16)[0], nn.Linear)
    with pytest.raises(UserError, match='dtype=int8 does not work here'):
        pack(make(), torch.int8)


@torch.no_grad()
def test_a_cpu_without_kernels_for_bfloat16_keeps_torchs_layers(monkeypatch):
    def refuse(*arguments):
        raise RuntimeError('bf16 path needs the cpu support')
    monkeypatch.setattr(packed, 'SMALLEST', 0)
    monkeypatch.setattr(torch.ops.mkldnn, '_is_mkldnn_bf16_supported', lambda: False)
    monkeypatch.setattr(packed, 'PackedLinear', refuse)
    model = pack(make(), torch.bfloat16)
    assert isinstance(model[0], nn.Linear) and model[0].weight.dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match='bf16 path'):  # float32 is packed there as well
        pack(make(), torch.float32)
