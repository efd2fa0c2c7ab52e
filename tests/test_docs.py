"""What the docs say of attention and draw of it, from outside the model."""

import contextlib
import dataclasses
import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ENVIRONMENT, REPOSITORY, TINY

import model
import prepare
import train
from folio import checkpoint
from folio.cli import UserError
from folio.optim import make_optimizers
from folio.tokenizer import Tokenizer

sys.path.insert(0, str(REPOSITORY / 'docs'))

import attention
import attention_maps
import memory
import questions
import sampling_speed


def test_attention_three_ways_gives_the_same_numbers():
    gpt, idx = attention.small_gpt(), torch.randint(65, (3, 64))
    ours = gpt(idx)
    logits = attention.three_ways(gpt, idx)
    assert list(logits) == ['explicit', 'sdpa', 'nn.TransformerEncoder']
    assert ours.abs().max() > 1
    for values in logits.values():
        assert torch.allclose(values, ours, atol=1e-4)
    assert torch.equal(gpt(idx), ours)  # nothing stays changed


def test_attention_three_ways_has_the_same_gradients():
    idx = torch.randint(65, (3, 64))
    gradients = []
    for attend in (attention.explicit, attention.sdpa, model.attend):
        gpt = attention.small_gpt()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model, 'attend', attend)
            gpt(idx, idx).backward()
        gradients.append([p.grad for p in gpt.parameters()])
    for one, *others in zip(*gradients, strict=True):
        assert all(torch.allclose(one, other, atol=1e-5) for other in others)


@pytest.mark.parametrize('more', [[], ['--n_kv_head=1'], ['--position=none', '--qk_norm=False']],
                         ids=str)
def test_the_maps_are_what_the_model_attends_to(home, more):
    train.main([*TINY, '--max_steps=2', '--out_dir=run', *more])
    state = checkpoint.load('run')
    network, tokenizer = model.from_checkpoint(state), Tokenizer(state['tokenizer'])
    idx = torch.tensor(tokenizer.encode('the lazy dogs').tolist())[None]
    maps, watched = attention_maps.attention_maps(network, idx), []
    assert [weights.shape for weights in maps] == [(2, 13, 13)] * 2
    for weights in maps:
        assert torch.allclose(weights.sum(-1), torch.ones(2, 13))
        assert (weights.triu(1) == 0).all()

    def attend(q, k, v, dropout=0.0):
        watched.append(maps[len(watched)] @ v.repeat_interleave(q.size(1) // v.size(1), 1))
        return watched[-1]
    before = network(idx)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, 'attend', attend)
        assert torch.allclose(network(idx), before, atol=1e-5)


def test_the_maps_of_a_byte_model_are_drawn(home):
    (home / 'tiny.txt').write_text('the lazy dogs ' * 99)
    prepare.main(['--input=tiny.txt', '--tokenizer=byte', '--name=bytes'])
    train.main([*TINY, '--dataset=bytes', '--max_steps=2', '--out_dir=run'])
    attention_maps.main(['--out_dir=run', '--text=the lazy', '--picture=maps.png'])
    assert (home / 'maps.png').exists()


def test_the_maps_are_drawn_and_what_cannot_be_is_one_line(home):
    train.main([*TINY, '--max_steps=2', '--out_dir=run'])
    attention_maps.main(['--out_dir=run', '--text=the lazy', '--picture=maps.png'])
    assert (home / 'maps.png').read_bytes().startswith(b'\x89PNG')
    attention_maps.main(['run', '--text=the lazy'])
    assert (home / 'out/attention_maps.png').exists()  # where git does not look
    for argv, message in ((['--text='], '--text has 0 tokens'), (['--text=Ä'], 'no character'),
                          (['--text=the lazy dogs over and over'], 'has 27 tokens; .* 1 to 16'),
                          (['--text=the', '--picture=a.xyz'], 'a.xyz')):
        with pytest.raises(UserError, match=message):
            attention_maps.main(['--out_dir=run', *argv])


@pytest.mark.parametrize('optimizer', ['adamw', 'muon'])
def test_the_memory_that_is_computed_is_that_of_a_step(optimizer):
    config = train.TrainConfig(16, 30, n_layer=3, n_embd=16, batch_size=2, optimizer=optimizer)
    network, idx = model.GPT(config), torch.zeros(2, 16, dtype=torch.int64)
    optimizers = make_optimizers(network, config, torch.float32)
    network(idx, idx).backward()
    for each in optimizers:
        each.step()
    parameters = list(network.parameters())
    held = [p for p in parameters] + [p.grad for p in parameters] + [
        value for each in optimizers for moments in each.state.values()
        for value in moments.values() if value.dim()]
    options = memory.MemoryConfig(devices=2, optimizer=optimizer)
    numbers, size, plain, once, shared = memory.sizes(config, options)
    assert numbers == sum(p.numel() for p in parameters)
    assert size == sum(tensor.nbytes for tensor in held)
    assert size < once < plain and shared < once
    two, four, eight = (memory.sizes(dataclasses.replace(config, batch_size=size), options)[2]
                        for size in (2, 4, 8))
    assert eight - four == pytest.approx(2 * (four - two))


@pytest.mark.slow
@pytest.mark.parametrize('question', questions.QUESTIONS)
def test_each_question_trains_its_variants_and_leaves_the_model_as_it_was(
        home, capsys, monkeypatch, question):
    original = [model.attend, model.Attention, model.Block.forward, model.GPT.__init__]
    monkeypatch.setattr(questions, 'BASE', [*TINY, '--n_head=2', '--position=learned',
                                            '--token_shift=False'])
    monkeypatch.setattr(questions, 'DATASET', 'tiny')
    questions.main([f'--question={question}', '--seeds=1,2', '--max_steps=2'])
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 2 + len(questions.QUESTIONS[question])
    assert [model.attend, model.Attention, model.Block.forward, model.GPT.__init__] == original


CHANGES = {name: changes for variants in questions.QUESTIONS.values()
           for name, (_, *changes) in variants.items() if changes}


@pytest.mark.parametrize('name', CHANGES)
@torch.no_grad()
def test_each_change_makes_another_model_that_generates_what_it_predicts(name):
    options = model.GPTConfig(16, 30, n_layer=2, n_embd=16, position='learned', qk_norm=False)
    idx = torch.randint(30, (2, 12))
    torch.manual_seed(1)
    before = model.GPT(options).eval()(idx)
    with contextlib.ExitStack() as changed:
        for change in CHANGES[name]:
            changed.enter_context(change)
        torch.manual_seed(1)
        gpt = model.GPT(options).eval()
        after, cache = gpt(idx), model.KVCache(gpt.config, 2)
        if 'zero' not in name:  # which look at what is not there yet
            steps = [gpt(idx[:, :5], cache=cache)] + [
                gpt(idx[:, i:i + 1], cache=cache) for i in range(5, 12)]
            assert torch.allclose(torch.cat(steps, dim=1), after, atol=1e-5)
    assert not torch.allclose(before, after, atol=1e-5)


def test_a_mask_of_zeros_lets_the_future_through():
    q, k, v = torch.randn(3, 1, 2, 6, 8)
    changed = torch.cat((v[:, :, :-1], v[:, :, -1:] + 1), dim=2)
    for attend, leaks in ((questions.attend_zero(True), True),
                          (questions.attend_zero(False), False), (model.attend, False)):
        same = torch.allclose(attend(q, k, v)[:, :, :-1], attend(q, k, changed)[:, :, :-1])
        assert same != leaks


def test_the_scripts_of_the_docs_run_from_anywhere(tmp_path):
    result = subprocess.run([sys.executable, REPOSITORY / 'docs' / 'attention.py'], cwd=tmp_path,
                            env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.count('from explicit by at most') == 3


# --- the speed of sampling: nanoGPT is a stand-in with the same interface --------------------

SAMPLED = {'n_layer': 1, 'n_head': 2, 'n_embd': 32, 'block_size': 64, 'vocab_size': 300}
NANOGPT = '''
import collections
import torch

GPTConfig = collections.namedtuple(
    'GPTConfig', 'block_size vocab_size n_layer n_head n_embd dropout bias')

class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        print('number of parameters')

    def generate(self, idx, count, temperature, top_k):
        assert idx.shape == (2, 9) and top_k == 200
'''


@pytest.mark.parametrize('name', sampling_speed.CONTENDERS)
def test_each_contender_draws_in_every_format_that_it_has(name, tmp_path, capsys):
    make, module, dtypes = sampling_speed.CONTENDERS[name]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f'needs {module}')
    (tmp_path / 'model.py').write_text(NANOGPT)
    for dtype in dtypes:
        generate = make(SAMPLED, dtype, tmp_path, 2)
        for count in (1, 5):
            generate(np.arange(9), 2, count)
    assert capsys.readouterr().out == ''


def test_a_turn_takes_the_first_token_and_the_others_apart(monkeypatch):
    asked, clock = [], iter([0.0, 2.0, 2.0, 7.0])
    monkeypatch.setattr(sampling_speed, 'contender', lambda *facts: lambda prompt, batch, count: (
        asked.append((len(prompt), batch, count))))
    monkeypatch.setattr(sampling_speed.time, 'perf_counter', lambda: next(clock))
    turn = sampling_speed.take_sampling_turn('folio', 'char', 'float32', None, 8, 32, 4)
    assert turn == (2.0, 1.0) and asked == [(32, 8, 1), (32, 8, 4)]


@pytest.mark.parametrize('argv, message', [
    (['--sizes=huge'], 'no size huge; there are gpt2, char'),
    (['--against=nowhere'], '--against=nowhere: there is no model.py')])
def test_what_cannot_be_measured_of_sampling_is_one_line(argv, message):
    with pytest.raises(UserError, match=message):
        sampling_speed.main(argv)


@pytest.mark.slow
def test_samplers_take_turns(capsys):
    sampling_speed.main(['--sizes=char', '--dtypes=float32', '--batches=2', '--contexts=8,300',
                         '--tokens=3', '--rounds=1'])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith('| 2 | 8 | ') and any('| folio |' in line for line in lines)
