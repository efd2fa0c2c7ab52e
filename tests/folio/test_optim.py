"""Muon against what defines it, and each parameter in one optimizer."""

import pytest
import torch

from model import GPT, GPTConfig
from optim import Muon, make_optimizers, orthogonalize, param_groups
from train import TrainConfig

SMALL = dict(vocab_size=9, block_size=8, n_layer=2, n_head=2, n_embd=16)


@pytest.mark.parametrize('shape', [
    {}, {'n_layer': 0, 'position': 'none', 'tied': False}, {'position': 'learned', 'mlp': 'swiglu'},
    {'mlp': 'none'}, {'bias': True, 'norm_weight': True, 'norm': 'layernorm'}], ids=str)
@pytest.mark.parametrize('optimizer', ['adamw', 'muon'])
def test_each_parameter_has_one_optimizer_and_only_matrices_decay(shape, optimizer):
    options = TrainConfig(**SMALL | shape, optimizer=optimizer)
    model = GPT(options)
    optimizers = make_optimizers(model, options)
    groups = param_groups(optimizers)
    held = [id(p) for group in groups for p in group['params']]
    assert sorted(held) == sorted(map(id, model.parameters()))
    for group in groups:
        assert {p.dim() >= 2 for p in group['params']} == {group['weight_decay'] > 0}
    if optimizer == 'muon' and model.blocks:
        assert isinstance(optimizers[1], Muon)
        assert {id(p) for group in optimizers[1].param_groups for p in group['params']} == {
            id(p) for p in model.blocks.parameters() if p.dim() == 2}


@pytest.mark.parametrize('shape', [(3, 8, 8), (2, 32, 8), (2, 8, 32)])
def test_orthogonalize_keeps_the_singular_vectors_and_levels_the_values(shape):
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    values = torch.linspace(0.1, 1, min(shape[1:])).expand(shape[0], -1)
    y = orthogonalize(u * values[:, None] @ v).float()
    core = u.mT @ y @ v.mT  # diagonal, if the vectors are the same
    level = core.diagonal(dim1=1, dim2=2)
    assert 0.6 < level.min() and level.max() < 1.3
    assert (core - torch.diag_embed(level)).abs().max() < 0.15


def step_of(p, gradients, **options):
    optimizer = Muon(p if isinstance(p, list) else [p], 0.1, **options)
    for gradient in gradients:
        for q, g in zip(optimizer.param_groups[0]['params'], gradient, strict=True):
            q.grad = g.clone()
        optimizer.step()


def test_muon_takes_equal_shapes_together_and_parts_apart():
    torch.manual_seed(0)
    start, gradients = torch.randn(24, 8), torch.randn(3, 24, 8)
    whole, parts = start.clone(), [part.clone() for part in start.split([8, 8, 8])]
    whole.parts = [8, 8, 8]
    step_of(whole, [[g] for g in gradients], weight_decay=0.1)
    step_of(parts, [g.split([8, 8, 8]) for g in gradients], weight_decay=0.1)
    alone = [part.clone() for part in start.split([8, 8, 8])]
    for i, part in enumerate(alone):
        step_of(part, [[g.split([8, 8, 8])[i]] for g in gradients], weight_decay=0.1)
    assert torch.equal(whole, torch.cat(parts))
    assert torch.allclose(whole, torch.cat(alone), atol=1e-3)
    assert not torch.allclose(whole, start, atol=0.1)


def test_muon_moves_every_direction_by_the_same_length():
    p = torch.zeros(16, 16)
    step_of(p, [[torch.randn(16, 16, generator=torch.Generator().manual_seed(0))]])
    assert 0.06 < torch.linalg.svdvals(p)[:-2].min() and torch.linalg.svdvals(p).max() < 0.13


def test_qkv_and_swiglu_say_which_matrices_they_hold():
    block = GPT(GPTConfig(**SMALL | {'n_kv_head': 1, 'mlp': 'swiglu', 'n_inner': 24})).blocks[0]
    assert block.attention.qkv.weight.parts == [16, 8, 8]
    assert block.mlp.up.weight.parts == [24, 24]
