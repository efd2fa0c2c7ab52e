"""The trainer: exact where it promises to be, and clear where it can't go on."""

import contextlib
import copy
import dataclasses
import itertools
import json
import math
import os
import pickle
import platform
import re
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, TINY
from hypothesis import given
from hypothesis import strategies as st
from ranks import Ranks, run_together

import folio.options
import prepare
import train
from folio import checkpoint, cli, machine
from folio.cli import UserError
from folio.journal import read_log
from folio.optim import make_optimizers
from folio.options import parse
from folio.tokenizer import Tokenizer
from model import GPT
from prepare import open_corpus
from tools import measure
from train import Progress, rate_factor, sequences_after, sequences_in_step, time_limit

CPU = machine.Machine(torch.device('cpu'))
RAMP = ['--warmup_tokens=300', '--batch_size=8', '--batch_size_start=2', '--batch_ramp_tokens=400']


def weights(folder, name='ckpt.pt'):
    return torch.load(folder / name, weights_only=True)['model']


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def options_of(*argv):
    return parse(train.TrainConfig, [*TINY, *argv])[0]


def one_step(model, tokens, options, where, progress):
    """One train_step of a fresh optimizer; returns (loss, norm of the gradient)."""
    scaler = torch.amp.GradScaler('cpu', enabled=False)
    optimizers = make_optimizers(model, options, torch.float32)
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group['lr'] = group['peak_lr']
    return train.train_step(model, optimizers, scaler, tokens, options, where, progress).tolist()


CONFIGURATIONS = sorted((REPOSITORY / 'config').glob('**/*.py'))


@pytest.mark.parametrize('path', CONFIGURATIONS, ids=lambda path: path.stem)
def test_each_configuration_is_a_run_that_can_be(path):
    options, _ = parse(train.TrainConfig, [str(path)])
    with torch.device('meta'):
        model = GPT(dataclasses.replace(options, vocab_size=options.vocab_size or 65))
        make_optimizers(model, options, torch.float32)
    many = range(2 * options.block_size)
    train.check_sizes(options, many, many, world=1)


# --- batches -------------------------------------------------------------------------------------

@pytest.mark.parametrize('world, micro', [(1, 8), (1, 2), (2, 4), (2, 1), (4, 2)])
def test_a_step_takes_the_same_windows_for_any_processes_and_micro_batches(
        home, monkeypatch, world, micro):
    options = options_of('--vocab_size=40', '--batch_size=8')
    tokens, taken = open_corpus('tiny')[0], []

    def get_batch(tokens, first, count, *rest):
        taken.extend(range(first, first + count))
        return original(tokens, first, count, *rest)
    original = train.get_batch
    monkeypatch.setattr(train, 'get_batch', get_batch)
    options.micro_batch_size = micro
    for rank in range(world):
        one_step(GPT(options), tokens, options, dataclasses.replace(CPU, rank=rank, world=world),
                 Progress(step=3, sequences=24))
    assert taken == list(range(24, 32))


def test_dropout_is_another_in_each_step_micro_step_and_rank(home, monkeypatch):
    options, seeds = options_of('--vocab_size=40', '--dropout=0.1', '--micro_batch_size=2'), []
    tokens, model = open_corpus('tiny')[0], GPT(options)
    monkeypatch.setattr(torch, 'manual_seed', seeds.append)
    for step in range(3):
        for rank in range(2):
            one_step(model, tokens, options, dataclasses.replace(CPU, rank=rank),
                     Progress(step=step))
    assert len(seeds) == len(set(seeds)) == 3 * 2 * 2


def test_targets_are_the_inputs_one_token_later(home):
    options, tokens = options_of('--vocab_size=40'), open_corpus('tiny')[0]
    x, y = train.get_batch(tokens, 5, 3, options, torch.device('cpu'))
    assert x.shape == y.shape == (3, 16) and torch.equal(x[:, 1:], y[:, :-1])
    start = train.window_starts([5], len(tokens), 16, options.seed)[0]
    assert x[0].tolist() == tokens.read(start, 16).tolist()
    assert y[0, -1] == tokens.read(start + 16, 1)[0]


@pytest.mark.parametrize('clip', [0.0, 0.01])
def test_a_long_gradient_is_clipped_and_the_step_is_the_one_by_hand(home, clip):
    argv = ['--vocab_size=40', '--optimizer=adamw', f'--grad_clip={clip}', '--beta1=0',
            '--beta2=0', '--weight_decay=0']
    options, tokens, steps = options_of(*argv), open_corpus('tiny')[0], []
    model = GPT(options)
    twin = copy.deepcopy(model)
    x, y = train.get_batch(tokens, 0, 4, options, torch.device('cpu'))
    twin(x, y).backward()
    expected = torch.cat([p.grad.flatten() for p in twin.parameters()])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, 'update_weights', lambda *rest: steps.append(
            torch.cat([p.grad.flatten() for p in model.parameters()])))
        _, norm = one_step(model, tokens, options, CPU, Progress())
    assert norm == pytest.approx(expected.norm().item(), rel=1e-5)
    by_hand = expected * (clip / (norm + 1e-6) if clip else 1)
    assert torch.allclose(steps[0], by_hand, atol=1e-8, rtol=1e-4)


# --- the order of the windows --------------------------------------------------------------------

@given(st.integers(1, 500), st.integers(0, 2**64 - 1))
def test_a_permutation_takes_each_index_to_its_own_place(n, key):
    places = train.permute(np.arange(n), n, np.full(n, key, np.uint64))
    assert sorted(places.tolist()) == list(range(n))


@given(st.integers(1, 200), st.integers(1, 20), st.integers(0, 19), st.integers(0, 1000))
def test_every_window_comes_once_an_epoch(n, block_size, extra, seed):
    n_tokens = (n + 1) * block_size + extra % block_size
    for epoch in range(3):
        index = np.arange(epoch * n, (epoch + 1) * n)
        starts = train.window_starts(index, n_tokens, block_size, seed)
        assert len(set(starts % block_size)) == 1
        assert sorted((starts // block_size).tolist()) == list(range(n))
        assert starts.min() >= 0 and starts.max() + block_size < n_tokens


def test_epochs_and_seeds_have_orders_of_their_own():
    def order(seed, epoch):
        index = np.arange(epoch * 100, epoch * 100 + 100)
        return train.window_starts(index, 101 * 8, 8, seed).tolist()
    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(map(tuple, orders))) == 4


def test_neighbours_in_the_order_are_no_neighbours_in_the_text():
    places = train.window_starts(np.arange(10_000), 10_001 * 4, 4, seed=3) // 4
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(places, np.arange(10_000))[0, 1]) < 0.05


def test_the_order_is_the_same_for_ever():
    starts = train.window_starts(np.arange(6), 1000, 8, seed=1337).tolist()
    again = [train.window_starts([i], 1000, 8, seed=1337)[0] for i in (5, 4, 3, 2, 1, 0)]
    assert starts == again[::-1]


def test_numbers_are_scrambled_as_splitmix64_does():
    outputs = train.mix(np.arange(1, 4, dtype=np.uint64) * train.GOLDEN)  # of the seed 0
    assert [hex(x) for x in outputs.tolist()] == [
        '0xe220a8397b1dcdaf', '0x6e789e6aa1b965f4', '0x6c45d188009454f']


def test_epochs_start_at_offsets_of_their_own():
    offsets = {int(train.window_starts([epoch * 100], 101 * 8, 8, seed=2)[0]) % 8
               for epoch in range(40)}
    assert len(offsets) > 5

# --- the learning rate, and the size of the batch ------------------------------------------------

def walk(options, steps):
    """The sequences before each step and after the last, one step at a time."""
    sequences = [0]
    for _ in range(steps):
        sequences.append(sequences[-1] + sequences_in_step(options, sequences[-1]))
    return sequences


RAMPS = [(1, 8, 1), (1, 8, 999), (4, 12, 5000), (2, 64, 33333), (8, 8, 700), (3, 6, 96)]


@pytest.mark.parametrize('start, most, tokens', RAMPS)
def test_the_batch_rises_linearly_in_multiples_of_its_start(start, most, tokens):
    options = options_of(f'--batch_size={most}', f'--batch_size_start={start}',
                         f'--batch_ramp_tokens={tokens}')
    for sequences in walk(options, 300):
        size = sequences_in_step(options, sequences)
        line = start + (most - start) * min(1, sequences * 16 / tokens)
        assert size % start == 0 and size <= line < size + start
        assert sequences * 16 < tokens or size == most


@pytest.mark.parametrize('start, most, tokens', RAMPS)
def test_the_sequences_after_any_step_are_those_of_a_walk(start, most, tokens):
    options = options_of(f'--batch_size={most}', f'--batch_size_start={start}',
                         f'--batch_ramp_tokens={tokens}')
    counts = walk(options, 300)
    assert [sequences_after(options, step) for step in range(301)] == counts


def test_the_warmup_counts_tokens_and_the_cosine_goes_along_them():
    options = options_of('--learning_rate=1', '--min_lr=0.1', '--batch_size=8', '--max_steps=200',
                         '--batch_size_start=2', '--batch_ramp_tokens=3000',
                         '--warmup_tokens=1000')
    counts = walk(options, 200)
    for step, (before, after) in enumerate(zip(counts, counts[1:], strict=False)):
        share = rate_factor(options, Progress(step, before, 0.0))
        if before * 16 < 1000:
            assert share == pytest.approx(after * 16 / (1000 + (after - before) * 16))
        else:
            progress = max(0, (before * 16 - 1000) / (counts[-1] * 16 - 1000))
            assert share == pytest.approx(0.55 + 0.45 * math.cos(math.pi * progress))
    assert rate_factor(options, Progress(200, counts[-1], 0.0)) == pytest.approx(0.1)


def test_the_rate_rises_linearly_and_falls_as_a_cosine():
    options = options_of('--learning_rate=1', '--min_lr=0.1', '--warmup_steps=10',
                         '--max_steps=110')
    rates = [rate_factor(options, Progress(step, 4 * step, 0.0)) for step in range(111)]
    assert rates[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert rates[10] == 1 and rates[60] == pytest.approx(0.55) and rates[110] == pytest.approx(0.1)
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_without_max_steps_the_rate_follows_the_clock():
    options = options_of('--max_seconds=100')
    assert rate_factor(options, Progress(50, 200, 0.0)) == 1
    assert rate_factor(options, Progress(50, 200, 50.0)) == pytest.approx(0.5)
    assert rate_factor(options, Progress(10**6, 4 * 10**6, 200.0)) == pytest.approx(0)


@pytest.mark.parametrize('given, limit', [
    ([], 150), (['--max_steps=9'], math.inf), (['--max_seconds=7', '--max_steps=9'], 7)])
def test_a_run_without_a_length_takes_150_seconds(given, limit):
    assert time_limit(options_of(*given)) == limit


# --- evaluation ----------------------------------------------------------------------------------

@pytest.mark.parametrize('limit, block_size', [(None, 16), (2, 16), (17, 16), (18, 16), (100, 7)])
def test_validation_and_the_measuring_tool_give_the_same_number(home, limit, block_size):
    val, meta = open_corpus('tiny')[1:]
    model = GPT(options_of('--vocab_size=40', f'--block_size={block_size}'))
    token_bytes = torch.ones(40, dtype=torch.int64)
    loss, bits = train.validate(model, val, CPU, limit, token_bytes)
    windows = measure.windows_over((limit or len(val)) - 1, block_size, block_size)
    numbers = measure.summary(measure.measure(model, val, CPU, windows, token_bytes)[0])
    assert loss == pytest.approx(numbers['loss'], abs=1e-6)
    assert bits == pytest.approx(numbers['bits_per_byte'], abs=1e-6)
    assert model.training


def test_a_model_that_knows_nothing_loses_the_logarithm_of_the_vocabulary(home):
    val, model = open_corpus('tiny')[1], GPT(options_of('--vocab_size=64', '--tied=False'))
    torch.nn.init.zeros_(model.lm_head.weight)
    loss, bits = train.validate(model, val, CPU, None, torch.full((64,), 2))
    assert loss == pytest.approx(math.log(64)) and bits == pytest.approx(3)
    assert train.validate(model, val, CPU)[1] is None


def test_a_sample_has_a_randomness_of_its_own():
    tokenizer = Tokenizer({'kind': 'byte'})
    model = GPT(options_of('--vocab_size=256'))
    before = torch.get_rng_state()
    texts = [train.sample(model, tokenizer, seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before) and model.training
    assert texts[0] == texts[1] != texts[2]


def test_the_shares_of_the_processes_add_up_to_the_whole(home):
    val, model = open_corpus('tiny')[1], GPT(options_of('--vocab_size=40'))
    sums, whole = [], train.validate(model, val, CPU, None, torch.ones(40))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine.dist, 'all_reduce',  # but for the maximum
                      lambda tensor, *rest: rest or sums.append(tensor.clone()))
        for rank in range(3):
            train.validate(model, val, dataclasses.replace(CPU, rank=rank, world=3), None,
                           torch.ones(40))
    nats, n_bytes = sum(sums).tolist()
    assert nats / (len(val) - 1) == pytest.approx(whole[0]) and n_bytes == len(val) - 1


def test_an_evaluation_is_left_out_where_that_at_the_end_is_near():
    options = options_of('--max_seconds=100', '--eval_interval=40')
    for step, seconds, soon in ((80, 80, False), (89, 89, False), (91, 91, True), (900, 91, False),
                                (0, 0, False)):
        assert train.ends_soon(options, Progress(step=step, seconds=seconds)) == soon
    assert not train.ends_soon(options_of('--max_steps=81', '--eval_interval=40'),
                               Progress(step=80, seconds=80))


# --- whole runs ----------------------------------------------------------------------------------

def test_a_run_leaves_checkpoints_and_a_log(home, capsys):
    train.main([*TINY, '--max_steps=30', '--eval_interval=10', '--learning_rate=1e-2'])
    folder, printed = home / 'out' / 'tiny', capsys.readouterr().out
    records = read_log(folder)
    assert [r['step'] for r in records] == list(range(1, 31))
    assert [r['step'] for r in records if 'val_loss' in r] == [10, 20, 30]
    assert records[-1]['tokens'] == 30 * 4 * 16
    assert records[-1]['train_loss'] < records[0]['train_loss']
    assert {'train_loss', 'lr', 'grad_norm', 'tokens_per_second', 'seconds'} <= records[5].keys()
    assert records[-1]['bits_per_byte'] == pytest.approx(records[-1]['val_loss'] / math.log(2))
    state = torch.load(folder / 'ckpt.pt', weights_only=True)
    assert state.keys() == {'model', 'optimizers', 'scaler', 'step', 'sequences', 'seconds',
                            'evaluated', 'best_loss', 'tracker', 'config', 'tokenizer',
                            'versions', 'data'}
    assert (state['step'], state['sequences']) == (30, 120)
    assert state['best_loss'] == min(r['val_loss'] for r in records if 'val_loss' in r)
    assert state['config']['device'] == 'cpu' and state['config']['n_kv_head'] == 2
    assert 'optimizers' not in torch.load(folder / 'best.pt', weights_only=True)
    assert re.search(r'best validation loss: \d\.\d{4}', printed)
    assert 'sample.py --out_dir=out/tiny' in printed and '0:00 left' in printed


def test_a_data_folder_of_nanogpt_s_trains_with_its_characters(home):
    folder, chars = home / 'data' / 'nano', ' abc'
    folder.mkdir()
    for name in ('train.bin', 'val.bin'):
        np.tile(np.arange(4, dtype='<u2'), 100).tofile(folder / name)
    (folder / 'meta.pkl').write_bytes(pickle.dumps({
        'vocab_size': 4, 'itos': dict(enumerate(chars)),
        'stoi': {char: i for i, char in enumerate(chars)}}))
    train.main([*TINY, '--dataset=nano', '--max_steps=2', '--out_dir=run'])
    assert checkpoint.load('run')['tokenizer'] == {'kind': 'char', 'chars': chars}
    (record,) = [record for record in read_log(home / 'run') if 'val_loss' in record]
    assert abs(record['bits_per_byte'] - record['val_loss'] / math.log(2)) < 1e-3


@pytest.mark.parametrize('seconds, evaluated', [(16, [8, 16]), (17, [8, 17]), (18, [8, 16, 18])])
def test_a_run_by_the_clock_does_not_end_with_two_evaluations(
        home, monkeypatch, seconds, evaluated):
    monkeypatch.setattr(train, 'seconds_since', lambda run: run.progress.step)  # a second a step
    train.main([*TINY, f'--max_seconds={seconds}', '--eval_interval=8'])
    records = read_log(home / 'out/tiny')
    assert [record['step'] for record in records if 'val_loss' in record] == evaluated


def test_a_signal_that_asks_to_save_is_harmless_before_there_is_a_run(home, monkeypatch):
    def set_up(*arguments):
        signal.raise_signal(signal.SIGUSR1)
        raise UserError('still here')
    monkeypatch.setattr(train, 'set_up', set_up)
    before = signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    with pytest.raises(UserError, match='still here'):
        train.main([*TINY, '--max_steps=1'])
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize('more', [['--dropout=0.2'], ['--dropout=0.2', '--micro_batch_size=2'],
                                  ['--dtype=bfloat16'], ['--optimizer=adamw'], RAMP], ids=str)
def test_a_resumed_run_has_bit_for_bit_the_weights_of_an_uninterrupted_one(home, monkeypatch, more):
    argv = [*TINY, '--max_steps=12', '--eval_interval=5', '--log_interval=1', *more]
    train.main([*argv, '--out_dir=whole'])
    clock = iter(range(1000))
    with monkeypatch.context() as patch:  # each look at the clock is a second later
        patch.setattr(train.time, 'perf_counter', lambda: next(clock))
        train.main([*argv, '--out_dir=parts', '--max_seconds=20'])
    stopped = torch.load('parts/ckpt.pt', weights_only=True)['step']
    assert 0 < stopped < 12
    train.main(['--out_dir=parts', '--resume=True', '--max_seconds=None'])
    assert equal(weights(home / 'whole'), weights(home / 'parts'))
    whole, parts = read_log(home / 'whole'), read_log(home / 'parts')
    assert ([(r['step'], r['train_loss']) for r in whole]
            == [(r['step'], r['train_loss']) for r in parts])


def test_evaluating_and_sampling_do_not_touch_training(home):
    train.main([*TINY, '--max_steps=10', '--dropout=0.2', '--out_dir=often', '--eval_interval=1'])
    train.main([*TINY, '--max_steps=10', '--dropout=0.2', '--out_dir=once'])
    assert equal(weights(home / 'often'), weights(home / 'once'))


def test_micro_batches_change_the_weights_by_rounding_only(home):
    train.main([*TINY, '--max_steps=5', '--out_dir=one'])
    train.main([*TINY, '--max_steps=5', '--out_dir=four', '--micro_batch_size=1'])
    one, four = weights(home / 'one'), weights(home / 'four')
    assert all(torch.allclose(one[name], four[name], atol=1e-5) for name in one)


def test_a_validation_loss_that_is_not_finite_is_not_saved(home, monkeypatch):
    monkeypatch.setattr(train, 'validate', lambda *rest: (math.nan, None))
    with pytest.raises(UserError, match='step 2: the validation loss is nan'):
        train.main([*TINY, '--max_steps=2'])
    assert torch.load('out/tiny/ckpt.pt', weights_only=True)['step'] == 0


def test_a_run_goes_on_in_a_folder_that_was_renamed(home):
    train.main([*TINY, '--max_steps=2', '--out_dir=before'])
    (home / 'before').rename(home / 'after')
    train.main(['--out_dir=after', '--resume=True', '--max_steps=3'])
    assert not (home / 'before').exists()
    assert torch.load('after/ckpt.pt', weights_only=True)['step'] == 3


def test_compiling_changes_neither_the_names_nor_the_results(home, monkeypatch):
    compiled = []

    def compile(self, **options):
        compiled.append(self)
        self._compiled_call_impl = original(self._call_impl, backend='eager')
    original = torch.compile
    monkeypatch.setattr(torch.nn.Module, 'compile', compile)
    monkeypatch.setattr(torch, 'compile', lambda function: function)
    train.main([*TINY, '--max_steps=3', '--out_dir=eager'])
    train.main([*TINY, '--max_steps=3', '--out_dir=compiled', '--compile'])
    assert len(compiled) == 1 and equal(weights(home / 'eager'), weights(home / 'compiled'))


def test_running_out_of_memory_names_what_helps(home, monkeypatch):
    def fails(*rest):
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB\nmore')
    monkeypatch.setattr(train, 'train_step', fails)
    with pytest.raises(UserError, match='out of memory; what helps: --micro_batch_size'):
        train.main([*TINY, '--max_steps=2'])


def test_a_longer_log_than_the_checkpoint_is_cut_on_resume(home):
    train.main([*TINY, '--max_steps=4'])
    folder = home / 'out' / 'tiny'
    with open(folder / 'log.jsonl', 'a') as log:
        log.write('{"step": 5, "tokens": 320, "train_loss": 9.0}\n{"step": 6, "tok')
    train.main([*TINY, '--max_steps=6', '--resume=True'])
    assert [r['step'] for r in read_log(folder)] == [1, 2, 3, 4, 5, 6]
    assert all(r['train_loss'] != 9.0 for r in read_log(folder))


def test_the_sample_of_each_evaluation_is_kept_with_its_step(home, capsys, monkeypatch):
    argv = [*TINY, '--eval_interval=2', '--log_interval=1']
    train.main([*argv, '--max_steps=6', '--out_dir=whole'])
    printed, whole = capsys.readouterr().out, (home / 'whole/samples.txt').read_bytes()
    samples = re.split(r'(?m)^step (\d+)\n', whole.decode())
    assert samples[1::2] == ['2', '4', '6']
    assert all(text.startswith('    ') and text in printed for text in samples[2::2])
    saves, save_run = [], train.save_run
    monkeypatch.setattr(train, 'save_run', lambda *rest: saves or save_run(*rest))
    train.main([*argv, '--max_steps=2', '--out_dir=parts'])
    saves.append('dies before it saves')
    train.main(['--out_dir=parts', '--resume=True', '--max_steps=4'])
    saves.clear()
    train.main(['--out_dir=parts', '--resume=True', '--max_steps=6', '--eval_interval=2'])
    steps = re.findall(r'(?m)^step (\d+)$', (home / 'parts/samples.txt').read_text())
    assert steps == ['2', '4', '6']


def test_resume_starts_where_nothing_is_and_ends_where_all_is_done(home, capsys):
    train.main([*TINY, '--max_steps=3', '--resume=True'])
    before = (home / 'out/tiny/ckpt.pt').read_bytes()
    for steps in (3, 2):
        train.main([*TINY, f'--max_steps={steps}', '--resume=True'])
        assert 'ended at step 3' in capsys.readouterr().out
    assert (home / 'out/tiny/ckpt.pt').read_bytes() == before


def test_a_fresh_run_moves_the_old_one_out_of_the_way(home, capsys):
    for _ in range(3):
        train.main([*TINY, '--max_steps=2'])
    assert sorted(p.name for p in (home / 'out').glob('tiny*')) == ['tiny', 'tiny.1', 'tiny.2']
    assert 'tiny.2' in capsys.readouterr().out


def test_resume_names_each_option_that_contradicts(home):
    train.main([*TINY, '--max_steps=2'])
    with pytest.raises(UserError, match=r'n_layer=3 \(there it is 2\), seed=5 \(there'):
        train.main([*TINY, '--resume=True', '--n_layer=3', '--seed=5', '--max_steps=4'])


def test_resume_takes_new_rates_and_keeps_other_options(home):
    train.main([*TINY, '--max_steps=2', '--weight_decay=0.3'])
    train.main(['--dataset=tiny', '--resume=True', '--max_steps=4', '--learning_rate=1e-4'])
    state = torch.load('out/tiny/ckpt.pt', weights_only=True)
    group = state['optimizers'][0]['param_groups'][0]
    assert len(state['optimizers']) == 2
    assert state['step'] == 4 and state['config']['weight_decay'] == 0.3
    assert (group['peak_lr'], group['weight_decay']) == (1e-4, 0.3)


def test_init_from_takes_weights_and_shape_and_may_shorten_the_context(home):
    train.main([*TINY, '--max_steps=2', '--position=learned', '--out_dir=first'])
    train.main(['--dataset=tiny', '--init_from=first', '--out_dir=second', '--max_steps=1',
                '--dropout=0.1', '--learning_rate=1e-30', '--muon_lr=0', '--weight_decay=0',
                '--block_size=8', '--device=cpu'])
    first, second = weights(home / 'first', 'best.pt'), weights(home / 'second')
    assert torch.equal(first.pop('wpe.weight')[:8], second.pop('wpe.weight'))
    assert equal(first, second)
    for argv, message in (([*TINY, '--n_embd=32'], 'n_embd=32'),
                          (['--block_size=99'], 'block_size=99')):
        with pytest.raises(UserError, match=message):
            train.main([*argv, '--init_from=first', '--max_steps=1'])


def test_a_run_from_weights_that_gets_worse_keeps_them_as_its_best(home):
    train.main([*TINY, '--max_steps=20', '--out_dir=first'])
    train.main([*TINY, '--init_from=first', '--max_steps=9', '--eval_interval=9',
                '--learning_rate=9', '--muon_lr=9', '--out_dir=worse'])
    first, last = (record for record in read_log(home / 'worse') if 'val_loss' in record)
    assert (first['step'], last['step']) == (0, 9) and first['val_loss'] < last['val_loss']
    assert first['val_loss'] == read_log(home / 'first')[-1]['val_loss']
    assert equal(weights(home / 'worse', 'best.pt'), weights(home / 'first'))


def test_nanogpts_init_from_is_answered_in_a_configuration_too(home):
    (home / 'resume.py').write_text("init_from = 'resume'\n")
    with pytest.raises(UserError, match='init_from=resume: .* --resume=True'):
        train.main([*TINY, 'resume.py'])


WAYS = ['out/tiny', 'out/tiny/', './out/../out/tiny', 'link', '{home}/out/tiny', 'link/../tiny']


def test_the_folder_that_a_run_starts_from_is_never_moved_away(home, monkeypatch):
    train.main([*TINY, '--max_steps=1'])
    os.symlink(home / 'out/tiny', home / 'link')
    os.symlink(home / 'out/tiny/best.pt', home / 'best.pt')
    (home / 'new.py').write_text("out_dir = 'out/tiny'\n")
    before = set(home.glob('**/*'))
    ways = [way.format(home=home) for way in WAYS]
    starts = ['best.pt', *(way + file for way in ways for file in ('', '/best.pt', '/ckpt.pt'))]
    for argv in ([], *([f'--out_dir={way}'] for way in ways), [str(home / 'new.py')]):
        for start in starts if argv in ([], ['--out_dir=link']) else ['out/tiny']:
            with pytest.raises(UserError, match='is in the folder of the new run; name another'):
                train.main([*TINY, '--max_steps=1', f'--init_from={start}', *argv])
    (home / 'elsewhere').mkdir()
    monkeypatch.chdir(home / 'elsewhere')  # where both are found beside the scripts
    for argv in ([], [str(home / 'new.py')]):
        with pytest.raises(UserError, match='name another out_dir'):
            train.main([*TINY, '--max_steps=1', '--init_from=out/tiny', *argv])
    assert not list(home.glob('**/*.1')) and before <= set(home.glob('**/*'))


def test_init_from_refuses_another_tokenizer_with_both_names(home):
    train.main([*TINY, '--max_steps=1', '--out_dir=first'])
    prepare.main(['--input=tiny.txt', '--tokenizer=byte', '--name=bytes'])
    with pytest.raises(UserError, match='bytes, those of the checkpoint .* characters'):
        train.main(['--dataset=bytes', '--init_from=first', '--max_steps=1'])


@pytest.mark.parametrize('argv, message', [
    (['--n_embd=15'], 'n_embd=15 is not divisible by n_head=2'),
    (['--batch_size=6', '--micro_batch_size=4'], r'batch_size=6 is not divisible by 1 .* x 4'),
    (['--block_size=9000'], 'too short for block_size=9000'),
    (['--dataset=nothing'], 'no data set or recipe is called nothing'),
    (['--init_from=nowhere'], 'nowhere: there is no such checkpoint'),
    (['--init_from=resume'], '--resume=True'), (['--init_from=out/tiny'], 'name another out_dir'),
    (['--init_from=tiny.txt'], 'tiny.txt is damaged, or was not made by folio'),
    (['--dtype=float16'], 'float16 does not work on a CPU'),
    (['--device=cuda:7'], 'device=cuda:7 does not work here'),
    (['--device=tpu'], 'device=tpu does not work here'),
    (['--vocab_size=5'], 'vocab_size=5 is below'), (['--learning_rate=0'], 'learning_rate'),
    (['--eval_interval=0'], 'eval_interval'), (['--seed=-1'], 'seed'), (['--seed=1e20'], 'seed'),
    (['--grad_clip=-1'], 'grad_clip'), (['--beta1=1'], 'beta1'),
    (['--eval_tokens=1'], 'eval_tokens'),
    (['--batch_size_start=2'], 'batch_size_start and batch_ramp_tokens need each other'),
    (['--batch_size_start=3', '--batch_ramp_tokens=9'], 'batch_size=4 is not a multiple of'),
    (['--batch_size_start=2', '--batch_ramp_tokens=9', '--micro_batch_size=4'],
     r'batch_size_start=2 is not divisible by 1 .* x 4'), (['--warmup_tokens=-1'], 'warmup_tokens'),
    (['--micro_batch_size=0'], 'micro_batch_size'), (['--n_layer=-1'], 'n_layer'),
    (['--out_dir=tiny.txt'], 'tiny.txt cannot be a folder: tiny.txt is a file'),
    (['--out_dir=tiny.txt/run'], 'tiny.txt is a file'), (['--dataset='], '--dataset must be'),
])
def test_what_cannot_be_trained_is_one_line(home, argv, message):
    with pytest.raises(UserError, match=message) as error:
        train.main([*TINY, '--max_steps=1', *argv])
    assert '\n' not in str(error.value)


def test_a_loss_that_is_not_finite_stops_and_names_the_last_good_checkpoint(home):
    train.main([*TINY, '--max_steps=2'])
    message = r'step \d: loss or gradient not finite in 4 steps in a row; .*tiny/ckpt.pt'
    with pytest.raises(UserError, match=message):
        train.main([*TINY, '--max_steps=9', '--resume=True', '--learning_rate=1e18',
                    '--min_lr=1e18', '--warmup_steps=0', '--grad_clip=0', '--max_bad_steps=4'])
    assert torch.load('out/tiny/ckpt.pt', weights_only=True)['step'] == 2


def test_a_loss_that_is_not_finite_makes_the_gradient_so(home, monkeypatch):
    options, tokens = options_of('--vocab_size=40'), open_corpus('tiny')[0]
    model = GPT(options)
    before = copy.deepcopy(model.state_dict())
    forward = model.forward
    model.forward = lambda *inputs: forward(*inputs) + math.inf  # whose own gradient is finite
    loss, norm = one_step(model, tokens, options, CPU, Progress())
    assert not math.isfinite(loss) and not math.isfinite(norm)
    assert equal(before, model.state_dict())


def test_the_line_of_progress_says_which_part_of_the_peak_the_products_are(
        home, monkeypatch, capsys):
    options = options_of('--vocab_size=40')
    model, flops = GPT(options), train.flops_per_token(GPT(options))
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and
                   'shares' not in name)  # the embedding's are the head's
    assert flops == 6 * matrices + 12 * options.n_layer * options.n_embd * options.block_size
    monkeypatch.setattr(train, 'peak_rate', lambda device: 1e15)
    train.main([*TINY, '--max_steps=1'])
    assert re.search(r'tokens/s \(0% of the peak\)  0:00 left', capsys.readouterr().out)



def test_a_few_steps_that_are_not_finite_are_skipped_logged_and_said(home, monkeypatch, capsys):
    normal, calls = train.clip_gradient, iter(range(100))

    def sometimes(runner, *rest):
        if next(calls) in (2, 3, 6):
            next(runner.parameters()).grad += math.nan
        return normal(runner, *rest)
    monkeypatch.setattr(train, 'clip_gradient', sometimes)
    assert train.main([*TINY, '--max_steps=8', '--log_interval=4', '--max_bad_steps=3']) == 0
    norms = [record['grad_norm'] for record in read_log(home / 'out/tiny')]
    assert [step for step, norm in enumerate(norms, 1) if norm is None] == [3, 4, 7]
    assert '2 of 3 steps skipped' in capsys.readouterr().out
    assert all(value.isfinite().all() for value in weights(home / 'out/tiny').values())


def test_a_batch_without_targets_has_no_nan(home):
    model = GPT(options_of('--vocab_size=40'))
    loss = model(torch.zeros(2, 4, dtype=torch.int64), torch.full((2, 4), -1))
    loss.backward()
    assert loss == 0 and all(p.grad.isfinite().all() for p in model.parameters())


# --- nothing lost --------------------------------------------------------------------------------

def test_a_live_run_keeps_its_folder(home):
    train.main([*TINY, '--max_steps=1', '--out_dir=run'])
    before = (home / 'run/ckpt.pt').read_bytes()
    with cli.locked(home / 'run'):
        for more in ([], ['--resume=True', '--max_steps=3']):
            with pytest.raises(UserError, match=f'run is in use by process {os.getpid()}'):
                train.main([*TINY, '--max_steps=1', '--out_dir=run', *more])
    assert (home / 'run/ckpt.pt').read_bytes() == before


def test_a_run_goes_on_from_the_checkpoint_before_a_broken_one(home, capsys):
    argv = [*TINY, '--out_dir=run', '--eval_interval=2']
    train.main([*argv, '--max_steps=6'])
    whole = weights(home / 'run')
    (home / 'run/ckpt.pt').write_bytes(b'cut short')
    train.main([*argv, '--max_steps=6', '--resume=True'])
    printed = capsys.readouterr().out
    assert 'ckpt.prev.pt is taken' in printed and 'going on from step 4' in printed
    assert equal(weights(home / 'run'), whole)
    assert [r['step'] for r in read_log(home / 'run')] == list(range(1, 7))


@pytest.mark.parametrize('failing, ended', [((2, 3), True), ((6, 7), False)])
def test_a_run_outlives_saves_that_fail_but_does_not_hide_the_last(
        home, monkeypatch, capsys, failing, ended):
    save, calls = torch.save, iter(range(1, 100))

    def full(state, file):
        if next(calls) in failing:
            raise RuntimeError('No space left on device')
        save(state, file)
    monkeypatch.setattr(torch, 'save', full)
    monkeypatch.setattr(train, 'validate', lambda *rest: (next(losses), None))
    losses = iter((3.0, 2.0, 1.0))  # the start writes ckpt.pt, each evaluation best.pt and ckpt.pt
    with contextlib.nullcontext() if ended else pytest.raises(UserError, match='last checkpoint'):
        assert train.main([*TINY, '--max_steps=6', '--eval_interval=2']) == 0
    assert capsys.readouterr().out.count('No space left') == 2
    assert torch.load('out/tiny/ckpt.pt', weights_only=True)['step'] == (6 if ended else 4)


def test_other_data_under_the_same_name_does_not_go_on(home):
    train.main([*TINY, '--max_steps=2'])
    text = (home / 'tiny.txt').read_text(encoding='utf-8')
    (home / 'tiny.txt').write_text(text.replace('quick', 'kicuq'), encoding='utf-8')
    prepare.main(['--input=tiny.txt', '--tokenizer=char', '--name=tiny'])
    with pytest.raises(UserError, match='the train split of tiny is not the one'):
        train.main([*TINY, '--max_steps=4', '--resume=True'])


def test_checkpoints_are_saved_by_the_clock_too(home, monkeypatch):
    saved, clock = [], iter(range(10 ** 6))
    monkeypatch.setattr(train, 'seconds_since', lambda run: next(clock))
    monkeypatch.setattr(checkpoint.Writer, 'save', lambda self, states, afterwards: saved.append(
        [state['step'] for state in states.values()][-1]))
    train.main([*TINY, '--max_steps=60', '--eval_interval=1000', '--save_minutes=1'])
    assert len(saved) > 2 and saved[-1] == 60
    assert all(15 < later - step < 31 for step, later in zip(saved, saved[1:-1], strict=False))


def test_a_signal_ends_an_evaluation_which_is_made_when_the_run_goes_on(home, monkeypatch):
    argv = [*TINY, '--eval_interval=4', '--max_steps=8', '--log_interval=2']
    train.main([*argv, '--out_dir=whole'])
    batches = train.validation_batches

    def interrupted(*sizes):
        os.kill(os.getpid(), signal.SIGTERM)
        return batches(*sizes)
    monkeypatch.setattr(train, 'validation_batches', interrupted)
    assert train.main([*argv, '--out_dir=parts']) == 128 + signal.SIGTERM
    assert torch.load('parts/ckpt.pt', weights_only=True)['step'] == 4
    monkeypatch.setattr(train, 'validation_batches', batches)
    assert train.main([*argv, '--out_dir=parts', '--resume=True']) == 0
    whole, parts = ([{name: record.get(name) for name in ('step', 'train_loss', 'val_loss')}
                     for record in read_log(home / name)] for name in ('whole', 'parts'))
    assert whole == parts
    assert (home / 'whole/samples.txt').read_bytes() == (home / 'parts/samples.txt').read_bytes()


def test_a_data_set_given_as_a_path_has_its_run_in_out(home):
    train.main([*TINY, f'--dataset={home}/data/tiny', '--max_steps=1'])
    assert (home / 'out/tiny/ckpt.pt').exists() and not (home / 'data/tiny/ckpt.pt').exists()


def test_an_empty_out_dir_is_refused(home):
    with pytest.raises(UserError, match='--out_dir must be a path or None'):
        train.main([*TINY, '--max_steps=1', '--out_dir='])


def test_special_tokens_have_no_bytes_of_the_text(home):
    texts = [f'document {i} has bytes'[:20] + '\n' for i in range(120)]
    (home / 'texts.jsonl').write_text(''.join(json.dumps({'text': t}) + '\n' for t in texts))
    prepare.main(['--input=texts.jsonl', '--tokenizer=bpe:300', '--name=pieces'])
    _, val, meta = open_corpus('pieces')
    tokenizer = Tokenizer(meta['tokenizer'])
    lengths = torch.tensor(tokenizer.text_lengths)
    model = GPT(options_of(f'--vocab_size={tokenizer.vocab_size}'))
    nats, bits = train.validate(model, val, CPU, None, lengths)
    ids = val.read(0, len(val))
    text_bytes = sum(len(tokenizer.token_bytes[i]) for i in ids[1:] if i != tokenizer.start)
    assert tokenizer.start in ids[1:]
    assert bits == pytest.approx(nats * (len(val) - 1) / math.log(2) / text_bytes)


def test_a_limited_vocabulary_of_characters_has_no_bits_where_one_is_unknown(home):
    prepare.main(['--input=tiny.txt', '--tokenizer=char', '--max_vocab=20', '--name=few'])
    train.main([*TINY, '--dataset=few', '--max_steps=1'])
    assert read_log(home / 'out/few')[-1]['bits_per_byte'] is None


# --- what is kept --------------------------------------------------------------------------------

def test_all_groups_follow_the_schedule_from_peaks_of_their_own(home):
    train.main([*TINY, '--max_steps=9', '--learning_rate=0.01', '--muon_lr=0.1'])
    state = torch.load('out/tiny/ckpt.pt', weights_only=True)
    factor = read_log(home / 'out/tiny')[-1]['lr'] / 0.01
    groups = [group for optimizer in state['optimizers'] for group in optimizer['param_groups']]
    assert 0 < factor < 0.1
    assert {round(group['lr'] / factor, 9) for group in groups} == {0.01, 0.1}


def test_best_pt_is_the_model_of_the_lowest_loss_only(home, monkeypatch):
    losses = iter([3.0, 2.0, 2.5])
    monkeypatch.setattr(train, 'validate', lambda *rest: (next(losses), None))
    train.main([*TINY, '--max_steps=6', '--eval_interval=2'])
    assert torch.load('out/tiny/best.pt', weights_only=True)['step'] == 4
    state = torch.load('out/tiny/ckpt.pt', weights_only=True)
    assert (state['step'], state['best_loss']) == (6, 2.0)


def test_tokens_per_second_are_those_of_the_steps_without_the_evaluation(home, monkeypatch):
    clock, here = iter(range(10 ** 6)), threading.current_thread()
    monkeypatch.setattr(train.time, 'perf_counter', lambda: (
        next(clock) if threading.current_thread() is here else 0))
    train.main([*TINY, '--max_steps=40', '--eval_interval=20', '--log_interval=10'])
    speeds = [record['tokens_per_second'] for record in read_log(home / 'out/tiny')]
    assert speeds[15] == round(10 * 4 * 16 / 21)  # two looks a step, and one for the report
    assert speeds[-1] == speeds[25] == speeds[15]


@pytest.mark.parametrize('name', ['best.pt', 'log.jsonl'])
def test_a_folder_with_anything_of_a_run_is_moved_away(home, capsys, name):
    (home / 'run').mkdir()
    (home / 'run' / name).write_text('{}')
    train.main([*TINY, '--max_steps=1', '--out_dir=run'])
    assert (home / 'run.1' / name).read_text() == '{}'
    assert 'run.1' in capsys.readouterr().out


def test_resuming_where_there_is_only_a_best_pt_says_so_and_moves_it_away(home, capsys):
    train.main([*TINY, '--max_steps=1', '--out_dir=run'])
    best = (home / 'run/best.pt').read_bytes()
    for name in checkpoint.RESUMABLE:
        (home / 'run' / name).unlink()
    train.main([*TINY, '--max_steps=1', '--out_dir=run', '--resume=True'])
    assert 'there is no run/ckpt.pt to go on from: a new run starts' in capsys.readouterr().out
    assert (home / 'run.1/best.pt').read_bytes() == best


def test_a_run_beside_the_scripts_goes_on_from_another_folder(home, monkeypatch):
    train.main([*TINY, '--max_steps=1', '--out_dir=out/run'])
    (home / 'elsewhere').mkdir()
    monkeypatch.chdir(home / 'elsewhere')
    train.main([*TINY, '--max_steps=2', '--out_dir=out/run', '--resume=True'])
    assert torch.load(home / 'out/run/ckpt.pt', weights_only=True)['step'] == 2
    train.main([*TINY, '--max_steps=1', '--out_dir=out/run'])
    assert (home / 'elsewhere/out/run/ckpt.pt').exists()


def test_a_checkpoint_a_data_set_and_a_configuration_of_old_still_work(home):
    old = REPOSITORY / 'tests' / 'old'
    for name, folder in (('ckpt.pt', 'run'), ('train.bin', 'data/mini'), ('val.bin', 'data/mini'),
                         ('meta.json', 'data/mini'), ('config.py', '.')):
        (home / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(old / name, home / folder)
    assert train.main(['config.py']) == 0
    state = torch.load('run/ckpt.pt', weights_only=True)
    assert state['step'] == 8 and state['config']['n_embd'] == 8
    assert [record['step'] for record in read_log(home / 'run')] == [5, 6, 7, 8]


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::DeprecationWarning')  # the compiler's own
def test_the_default_shape_trains_with_the_real_compiler(home, capsys):
    source = (REPOSITORY / 'train.py').read_text(encoding='utf-8') * 40
    (home / 'source.txt').write_text(source, encoding='utf-8')
    prepare.main(['--input=source.txt', '--tokenizer=byte', '--name=source'])
    train.main(['--dataset=source', '--compile=True', '--dtype=bfloat16', '--device=cpu',
                '--max_steps=4', '--eval_tokens=2000', '--log_interval=1', '--warmup_steps=0'])
    losses = [record['train_loss'] for record in read_log(home / 'out/source')]
    assert 'bfloat16, compiled' in capsys.readouterr().out
    assert len(losses) == 4 and losses[-1] < losses[0]


# --- as processes --------------------------------------------------------------------------------

@pytest.mark.parametrize('number', [
    signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_saves_after_the_step_and_the_run_goes_on_exactly(prepared, checkout, number):
    argv = [*TINY, '--max_steps=200', '--log_interval=1', '--eval_interval=1000', '--dropout=0.1']
    name = f'{number.name}'
    process = prepared('train.py', *argv, f'--out_dir={name}')
    while 'step 5 ' not in process.stdout.readline():
        assert process.poll() is None, process.stderr.read()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number and 'stopped by a signal after' in out, err
    assert f'--out_dir={name} --resume=True' in out
    stopped = torch.load(checkout / name / 'ckpt.pt', weights_only=True)['step']
    assert 5 <= stopped < 200
    runs = [[f'--out_dir={name}', '--resume=True']]
    runs += [] if (checkout / 'whole').exists() else [['--out_dir=whole']]
    for more in runs:
        process = prepared('train.py', *argv, *more)
        assert process.wait(timeout=60) == 0, process.stderr.read()
    assert equal(weights(checkout / name), weights(checkout / 'whole'))


@pytest.mark.slow
def test_a_run_killed_while_it_saves_keeps_the_checkpoint_before(prepared, checkout):
    argv = [*TINY, '--max_steps=1e6', '--eval_interval=2', '--log_interval=1', '--out_dir=killed']
    (checkout / 'dies.py').write_text('''
import os, sys, torch, train
saves, save = [], torch.save
def dying(state, file):
    saves.append(state['step'])
    if len(saves) == 7:  # ckpt.pt, then best.pt and it by turns: that of step 6
        file.write(b'cut short')
        file.flush()
        os._exit(9)
    save(state, file)
torch.save = dying
train.main(sys.argv[1:])
''')
    process = prepared('dies.py', *argv, '--learning_rate=1e-2')
    process.communicate(timeout=60)
    path = checkout / 'killed' / 'ckpt.pt'
    assert process.returncode == 9 and (checkout / 'killed' / 'ckpt.pt.tmp').exists()
    assert checkpoint.load(path)['step'] == 4
    process = prepared('train.py', *argv, '--resume=True', '--max_steps=7')
    assert process.wait(timeout=60) == 0, process.stderr.read()
    assert checkpoint.load(path)['step'] == 7


@pytest.mark.parametrize('more', [
    pytest.param([], id='constant'), pytest.param(RAMP, id='ramp', marks=pytest.mark.slow)])
def test_two_processes_train_what_one_does(prepared, checkout, more):
    argv = [*TINY, '--max_steps=8', '--eval_interval=4', '--log_interval=1', *more]
    run_together(checkout, 1, *argv, '--out_dir=one')
    out = run_together(checkout, 2, *argv, '--out_dir=two', '--micro_batch_size=1')
    assert out.count('best validation loss') == 1 and 'Warning' not in out
    assert (checkout / 'two/loss.png').read_bytes().startswith(b'\x89PNG')
    one, two = weights(checkout / 'one'), weights(checkout / 'two')
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)
    for a, b in zip(read_log(checkout / 'one'), read_log(checkout / 'two'), strict=True):
        assert a['train_loss'] == pytest.approx(b['train_loss'], abs=1e-5)
        assert a.get('val_loss') == pytest.approx(b.get('val_loss'), abs=1e-4)
        assert (a['tokens'], a['lr']) == (b['tokens'], b['lr'])


TWO = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']


def test_a_run_whose_reader_is_gone_stops_with_a_checkpoint(prepared, checkout):
    process = prepared('train.py', *TINY, '--max_steps=1e6', '--log_interval=1',
                       '--eval_interval=1e6', '--out_dir=unread')
    assert 'step 5 ' in [process.stdout.readline()[:7] for _ in range(6)][-1]
    process.stdout.close()
    assert process.wait(timeout=60) == 128 + signal.SIGHUP, process.stderr.read()
    assert process.stderr.read() == ''
    assert checkpoint.load(checkout / 'unread/ckpt.pt')['step'] >= 5


def test_a_run_with_nohup_goes_on_when_the_terminal_is_gone(prepared, checkout):
    process = prepared('train.py', *TINY, '--max_steps=300', '--log_interval=1',
                       '--out_dir=nohup', preexec_fn=lambda: signal.signal(1, signal.SIG_IGN))
    process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    process.stdout.close()
    assert process.wait(timeout=60) == 0, process.stderr.read()
    assert checkpoint.load(checkout / 'nohup/ckpt.pt')['step'] == 300


@pytest.mark.parametrize('script', ['train.py', 'sample.py', 'tools/evaluate.py'])
def test_an_interrupt_while_torch_is_loaded_is_quiet(prepared, script):
    process = prepared('-X', 'importtime', script, '--out_dir=nowhere')
    for line in process.stderr:
        if ' torch.' in line:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT and 'Traceback' not in err, err[-2000:]


def watch_rates(argv):
    """train.py, which writes down its rates, and whose process 1 has a faster clock."""
    rank, step = int(os.environ['RANK']), train.train_step
    clock = itertools.count(0, 0.01 * (1 + rank))  # each look is a hundredth later, or two

    def watched(runner, optimizers, *rest):
        with open(f'rates.{rank}', 'a') as file:
            print([g['lr'] for o in optimizers for g in o.param_groups], file=file)
        return step(runner, optimizers, *rest)
    train.train_step, train.time.perf_counter = watched, lambda: next(clock)
    train.main(argv)


def test_two_processes_keep_the_same_rates_by_the_clock(prepared, checkout):
    run_together(checkout, 2, *TINY, '--max_seconds=1', '--eval_interval=3', '--log_interval=1',
                 '--out_dir=clock', main=watch_rates)
    rates = [(checkout / f'rates.{rank}').read_text().splitlines() for rank in (0, 1)]
    assert rates[0] == rates[1] and len(rates[0]) > 6


def test_a_signal_to_torchrun_saves_in_all_processes_alike(prepared, checkout):
    process = prepared(*TWO, 'train.py', *TINY, '--max_steps=1e6', '--log_interval=1',
                       '--eval_interval=1e6', '--out_dir=preempted')
    while 'step 5 ' not in process.stdout.readline():
        assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert 'stopped by a signal' in out, err
    assert checkpoint.load(checkout / 'preempted' / 'ckpt.pt')['step'] >= 5


def test_what_rank_0_cannot_write_ends_both_with_one_line(prepared, checkout):
    (checkout / 'file').write_text('')
    codes, outputs = Ranks(checkout, 2, *TINY, '--max_steps=2', '--out_dir=file/run').wait()
    said = ''.join(outputs)
    assert codes == [1, 1] and said.count('error: ') == 1 and 'file/run' in said
    assert 'Connection closed' not in said


def lack_data(argv):
    """train.py, whose process 1 has no data."""
    if os.environ['RANK'] == '1':
        folio.options.ROOT = Path('/nowhere')
    train.main(argv)


def have_another_rate(argv):
    """train.py, whose process 1 has an option of its own."""
    train.main(argv + ['--learning_rate=0.5'] * int(os.environ['RANK']))


def test_what_one_process_lacks_is_said_by_it_and_what_differs_by_name(prepared, checkout):
    for main, message in (
            (lack_data, f'error: rank 1 ({platform.node()}): no data set or recipe is '),
            (have_another_rate, 'differ: learning_rate=0.004 and 0.5')):
        codes, outputs = Ranks(checkout, 2, *TINY, '--max_steps=1', '--out_dir=differs',
                               main=main).wait()
        said = ''.join(outputs)
        assert codes == [1, 1] and said.count('error: ') == 1 and message in said, said
    assert not (checkout / 'differs').exists()


def test_an_error_of_all_processes_is_printed_once(prepared, checkout):
    codes, outputs = Ranks(checkout, 2, *TINY, '--batch_size=3').wait()
    assert codes == [1, 1]
    assert ''.join(outputs).count('error: batch_size=3 is not divisible by 2') == 1


def test_a_folder_that_cannot_be_written_is_one_line(prepared, checkout):
    (checkout / 'file').write_text('')
    process = prepared('train.py', *TINY, '--max_steps=1', '--out_dir=file/run')
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and err.startswith('error: ') and err.count('\n') == 1


def test_json_lines_are_json(home):
    train.main([*TINY, '--max_steps=3'])
    for line in (home / 'out/tiny/log.jsonl').read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(name))


def test_a_run_goes_on_in_the_format_that_was_chosen_when_it_began(home, monkeypatch, capsys):
    argv = [*(option for option in TINY if 'dtype' not in option), '--out_dir=out/x']
    for answer, steps, resume in (('bfloat16', 2, False), ('float32', 4, True)):
        monkeypatch.setattr(machine, 'fastest_format', lambda rows, size, answer=answer: answer)
        train.main([*argv, f'--max_steps={steps}', f'--resume={resume}'])
        config = checkpoint.load(home / 'out' / 'x' / 'ckpt.pt')['config']
        assert (config['dtype'], config['compile']) == ('bfloat16', False)
        assert 'cpu, bfloat16, not compiled' in capsys.readouterr().out


def test_a_run_of_no_steps_has_its_untrained_weights(home, capsys):
    train.main([*TINY, '--max_steps=0', '--out_dir=out/x'])
    assert checkpoint.load('out/x')['step'] == 0
    train.main(['--out_dir=out/x', '--resume=True'])
    assert 'ended at step 0' in capsys.readouterr().out


def test_a_data_set_may_be_named_by_its_folder(home):
    for name in ('data/tiny', 'tiny/', './tiny', 'data/tiny.py'):
        train.main([*TINY[1:], f'--dataset={name}', '--max_steps=1', '--out_dir=x', '--resume'])
        assert checkpoint.load('x')['config']['dataset'] == 'tiny'


def test_a_signal_ends_an_evaluation_before_its_next_pass(monkeypatch):
    tokens, signals = measure.TextTokens(range(100)), machine.Signals(stop=signal.SIGTERM)
    monkeypatch.setattr(tokens, 'windows', lambda *_: pytest.fail('it goes on'))
    model = GPT(dataclasses.replace(train.TrainConfig(), vocab_size=100, n_layer=0).resolved())
    train.validate(model, tokens, CPU, signals=signals)


def test_processes_compare_their_tokenizers(home, monkeypatch):
    facts = []
    monkeypatch.setattr(machine.Machine, 'check_same', lambda self, known: facts.append(known))
    argv = [*TINY, '--max_steps=1']
    train.main(argv)
    path = home / 'data' / 'tiny' / 'meta.json'
    meta = json.loads(path.read_text())
    meta['tokenizer']['chars'] = meta['tokenizer']['chars'][::-1]
    path.write_text(json.dumps(meta))
    train.main(argv)
    assert {name for name in facts[0] if facts[0][name] != facts[1][name]} == {'tokenizer'}
