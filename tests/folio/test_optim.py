"""Muon against what defines it, and each parameter in one optimizer."""

import copy

import pytest
import torch

from folio.optim import Muon, load_states, make_optimizers, orthogonalize, param_groups
from model import GPT
from train import TrainConfig

SMALL = dict(vocab_size=9, block_size=8, n_layer=2, n_head=2, n_embd=16)


@pytest.mark.parametrize('shape', [
    {}, {'n_layer': 0, 'position': 'none', 'tied': False}, {'position': 'learned', 'mlp': 'swiglu'},
    {'mlp': 'none'}, {'bias': True, 'norm_weight': True, 'norm': 'layernorm'}], ids=str)
@pytest.mark.parametrize('optimizer', ['adamw', 'muon'])
def test_each_parameter_has_one_optimizer_and_only_matrices_decay(shape, optimizer):
    options = TrainConfig(**SMALL | shape, optimizer=optimizer)
    model = GPT(options)
    optimizers = make_optimizers(model, options, torch.float32)
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


def take_steps(parameters, gradients, heights=None, lr=0.1, **options):
    """Muon's steps of the parameters, in place, with one gradient each a step."""
    group = {'params': parameters, 'heights': heights or [[len(p)] for p in parameters]}
    optimizer = Muon([group], lr, **options)
    for step in gradients:
        for p, gradient in zip(parameters, step, strict=True):
            p.grad = gradient.clone()
        optimizer.step()


def test_muon_takes_equal_shapes_together_and_stacked_matrices_apart():
    torch.manual_seed(0)
    start, gradients = torch.randn(24, 8), torch.randn(3, 24, 8)
    whole, parts = start.clone(), [part.clone() for part in start.split([8, 8, 8])]
    take_steps([whole], [[g] for g in gradients], [[8, 8, 8]], weight_decay=0.1)
    take_steps(parts, [g.split([8, 8, 8]) for g in gradients], weight_decay=0.1)
    alone = [part.clone() for part in start.split([8, 8, 8])]
    for i, part in enumerate(alone):
        take_steps([part], [[g.split([8, 8, 8])[i]] for g in gradients], weight_decay=0.1)
    assert torch.equal(whole, torch.cat(parts))
    assert torch.allclose(whole, torch.cat(alone), atol=1e-3)
    assert not torch.allclose(whole, start, atol=0.1)


@pytest.mark.parametrize('shape', [(16, 16), (24, 8), (8, 24)], ids=str)
@pytest.mark.parametrize('weight_decay', [0.0, 0.3])
def test_muon_takes_the_steps_of_torchs_but_for_even_rows(shape, weight_decay, monkeypatch):
    monkeypatch.setattr(Muon, 'even_rows', lambda self, updates, squares, beta2: updates)
    torch.manual_seed(0)
    start, gradients = torch.randn(shape), torch.randn(5, *shape)
    ours, theirs = start.clone(), torch.nn.Parameter(start.clone())
    take_steps([ours], [[g] for g in gradients], weight_decay=weight_decay)
    oracle = torch.optim.Muon([theirs], lr=0.1, weight_decay=weight_decay, momentum=0.95)
    for gradient in gradients:
        theirs.grad = gradient.clone()
        oracle.step()
    assert torch.allclose(ours, theirs.data, atol=0.02)  # torch's orthogonalizes in bfloat16
    assert (ours - start).norm() > 0.5


def test_muon_brings_the_rows_of_an_update_to_one_size_and_keeps_its_own():
    torch.manual_seed(0)
    updates = torch.randn(2, 6, 8) * torch.arange(1, 7)[:, None]
    squares = torch.zeros(2, 6, 1)
    optimizer = Muon([torch.zeros(6, 8)], lr=0.1)
    for _ in range(4):  # the average has the share 1 - 0.5^4 of each mean square
        evened = optimizer.even_rows(updates, squares.unbind(), beta2=0.5)
    expected = updates.square().mean(dim=2, keepdim=True) * (1 - 0.5 ** 4)
    assert torch.allclose(squares, expected, rtol=1e-5)
    rows, sizes = evened.norm(dim=2), evened.norm(dim=(1, 2))
    assert torch.allclose(rows, rows[:, :1].expand(2, 6), rtol=1e-5)
    assert torch.allclose(sizes, updates.norm(dim=(1, 2)), rtol=1e-5)
    assert optimizer.even_rows(torch.zeros(2, 6, 8), squares.unbind(), 0.5).abs().sum() == 0


def test_adamw_takes_the_steps_of_torchs():
    torch.manual_seed(0)
    options = TrainConfig(**SMALL, optimizer='adamw', beta1=0.7, beta2=0.8, weight_decay=0.3)
    model = GPT(options)
    twin = copy.deepcopy(model)
    matrices = [p for p in twin.parameters() if p.dim() > 1]
    oracle = torch.optim.AdamW(matrices, lr=options.learning_rate, betas=(0.7, 0.8),
                               weight_decay=0.3)
    ours = make_optimizers(model, options, torch.float32)[0]
    for _ in range(4):
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        ours.step()
        oracle.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)


def test_a_copy_of_a_model_has_the_same_optimizers():
    options = TrainConfig(**SMALL, mlp='swiglu', n_kv_head=1)
    model = GPT(options)
    groups = [param_groups(make_optimizers(one, options, torch.float32))[-1]
              for one in (model, copy.deepcopy(model))]
    assert groups[0]['heights'] == groups[1]['heights']
    assert [16, 8, 8] in groups[0]['heights'] and [48, 48] in groups[0]['heights']


def test_moments_are_loaded_and_the_rates_of_the_options_stay():
    options = TrainConfig(**SMALL)
    model = GPT(options)
    before = make_optimizers(model, options, torch.float32)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    for optimizer in before:
        optimizer.step()
    states = [optimizer.state_dict() for optimizer in before]
    del states[1]['param_groups'][0]['heights']  # as older files are
    del states[1]['param_groups'][0]['beta2']
    for moments in states[1]['state'].values():
        del moments['squares']
    options = TrainConfig(**SMALL, learning_rate=1e-5, weight_decay=0.5)
    after = make_optimizers(model, options, torch.float32)
    load_states(after, states)
    assert param_groups(after)[0]['peak_lr'] == 1e-5
    assert param_groups(after)[0]['weight_decay'] == 0.5
    for p in model.blocks[0].attention.parameters():
        assert torch.equal(after[1].state[p]['momentum'], before[1].state[p]['momentum'])
        p.grad = torch.ones_like(p)
    after[1].step()
    assert all(moments['squares'].sum() > 0 for moments in after[1].state.values())


def test_muon_moves_every_direction_by_the_same_length():
    p = torch.zeros(16, 16)
    take_steps([p], [[torch.randn(16, 16, generator=torch.Generator().manual_seed(0))]])
    assert 0.06 < torch.linalg.svdvals(p)[:-2].min() and torch.linalg.svdvals(p).max() < 0.13


@pytest.mark.parametrize('optimizer', ['adamw', 'muon'])
def test_a_step_without_a_finite_gradient_changes_nothing_and_the_next_one_does(optimizer):
    torch.manual_seed(0)
    options = TrainConfig(**SMALL, optimizer=optimizer)
    model = GPT(options)
    optimizers = make_optimizers(model, options, torch.float32)

    def step(found_inf, gradient):
        for p in model.parameters():
            p.grad = torch.full_like(p, gradient)
        for one in optimizers:
            one.found_inf = torch.tensor(found_inf)
            one.step()
        states = [one.state_dict()['state'] for one in optimizers]
        return copy.deepcopy([list(model.parameters()), states])

    first, skipped, second = step(0.0, 0.1), step(1.0, float('nan')), step(0.0, 0.1)
    for one, other in zip(first[0], skipped[0], strict=True):
        assert torch.equal(one, other)
    assert str(first[1]) == str(skipped[1])  # moments and counts of steps
    assert not any(torch.equal(one, other) for one, other in zip(first[0], second[0], strict=True))
    assert all(p.isfinite().all() for p in second[0])
