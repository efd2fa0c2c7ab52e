"""A sharded model is what a plain one is; here in one process, test_processes.py has several."""

import copy

import pytest
import torch
import torch.distributed as dist
from storm import equal

from folio import checkpoint
from folio.machine import Machine
from folio.optim import load_states, make_optimizers
from folio.shard import gathered, is_sharded, shard
from model import GPT
from train import Progress, TrainConfig, train_step

CPU = torch.device('cpu')
SMALL = dict(vocab_size=9, block_size=8, n_layer=2, n_head=2, n_embd=16, batch_size=2)


@pytest.fixture
def alone():
    """A group of processes that has one."""
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Windows:
    """Tokens that are random, but the same in each run."""

    def __len__(self):
        return 10 ** 4

    def windows(self, starts, length):
        generator = torch.Generator().manual_seed(0)
        return torch.randint(9, (len(starts), length), generator=generator).numpy()


def take_steps(model, optimizers, options, steps=2):
    """[(loss, norm)] of some steps."""
    scaler = torch.amp.GradScaler('cpu', enabled=False)
    return [train_step(model, optimizers, scaler, Windows(), options, Machine(CPU),
                       Progress(step)).tolist() for step in range(steps)]


def state_of(model, optimizers):
    """What a checkpoint has of them."""
    return checkpoint.copied({'model': model.state_dict(keep_vars=True),
                              'optimizers': [each.state_dict() for each in optimizers]}, {})


def plain_and_sharded(**more):
    """(options, a trained model with its optimizers, the same sharded)."""
    options = TrainConfig(**SMALL | more).resolved()
    torch.manual_seed(1)
    plain = GPT(options)
    optimizers = make_optimizers(plain, options, torch.float32)
    take_steps(plain, optimizers, options)
    whole = copy.deepcopy(plain)
    theirs = make_optimizers(whole, options, torch.float32)
    load_states(theirs, copy.deepcopy([each.state_dict() for each in optimizers]))
    return options, (plain, optimizers), (shard(whole, theirs, CPU), theirs)


@pytest.mark.parametrize('more', [
    {}, {'optimizer': 'adamw', 'tied': False, 'micro_batch_size': 1}, {'n_layer': 0},
    {'mlp': 'swiglu', 'n_kv_head': 1, 'recompute': True, 'position': 'learned', 'bias': True},
    ], ids=str)
def test_a_sharded_model_takes_the_steps_of_a_plain_one(alone, more):
    options, plain, sharded = plain_and_sharded(**more)
    assert all(map(is_sharded, sharded[0].parameters()))
    assert equal(state_of(*plain), state_of(*sharded))
    assert take_steps(*plain, options) == take_steps(*sharded, options)
    assert equal(state_of(*plain), state_of(*sharded))


def test_a_sharded_model_whose_blocks_are_compiled_takes_the_same_steps(alone):
    options, plain, sharded = plain_and_sharded()
    for block in sharded[0].blocks:
        block.compile(backend='eager')
    expected, found = take_steps(*plain, options), take_steps(*sharded, options)
    assert torch.allclose(torch.tensor(expected), torch.tensor(found), atol=1e-5)


def test_a_step_that_is_not_finite_leaves_a_sharded_model_as_it_was(alone):
    options, _, sharded = plain_and_sharded()
    before = state_of(*sharded)
    sharded[0].norm.register_forward_hook(lambda module, args, out: out * float('nan'))
    take_steps(*sharded, options, 1)
    assert equal(before, state_of(*sharded))


def test_of_tied_weights_a_checkpoint_has_one_copy(alone):
    weights = state_of(*plain_and_sharded()[2])['model']
    assert weights['wte.weight'].data_ptr() == weights['lm_head.weight'].data_ptr()


def test_a_gathered_model_says_and_draws_what_a_plain_one_does(alone):
    _, (plain, _), (sharded, _) = plain_and_sharded()
    sharded.blocks[0].compile(backend=lambda *graph: 1 / 0)  # which it does not ask for
    idx = torch.tensor([[1, 2, 3]])
    with gathered(sharded):
        with torch.no_grad():
            assert torch.equal(plain(idx), sharded.forward(idx))
        texts = [list(model.generate(idx, 12)) for model in (plain, sharded)]
    assert torch.equal(*map(torch.stack, texts))
    assert all(map(is_sharded, sharded.parameters()))


def test_any_other_model_is_gathered_as_it_is():
    with gathered(torch.nn.Linear(1, 1)):
        pass


def test_a_single_process_has_all_and_is_told_so(capsys):
    machine = Machine(CPU)
    machine.choose(TrainConfig(device='cpu', dtype='float32', shard=True), {}, 1, 1)
    assert not machine.sharded and 'there is a single process' in capsys.readouterr().out
