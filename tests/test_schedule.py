"""The schedule: the rate against its formula, the batch against a walk step by step."""

import math

import pytest
from conftest import TINY

import train
from config import parse
from schedule import batch_at, rate, sequences_after, time_limit


def options_of(*argv):
    return parse(train.TrainConfig, [*TINY, *argv])[0]


def walk(options, steps):
    """The sequences before each step and after the last, one step at a time."""
    sequences = [0]
    for _ in range(steps):
        sequences.append(sequences[-1] + batch_at(options, sequences[-1]))
    return sequences


RAMPS = [(1, 8, 1), (1, 8, 999), (4, 12, 5000), (2, 64, 33333), (8, 8, 700), (3, 6, 96)]


@pytest.mark.parametrize('start, most, tokens', RAMPS)
def test_the_batch_rises_linearly_in_multiples_of_its_start(start, most, tokens):
    options = options_of(f'--batch_size={most}', f'--batch_size_start={start}',
                         f'--batch_ramp_tokens={tokens}')
    for sequences in walk(options, 300):
        size = batch_at(options, sequences)
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
        share = rate(options, step, before, 0.0)
        if after * 16 < 1000:
            assert share == pytest.approx(after * 16 / 1000)
        else:
            progress = max(0, (before * 16 - 1000) / (counts[-1] * 16 - 1000))
            assert share == pytest.approx(0.55 + 0.45 * math.cos(math.pi * progress))
    assert rate(options, 200, counts[-1], 0.0) == pytest.approx(0.1)


def test_the_rate_rises_linearly_and_falls_as_a_cosine():
    options = options_of('--learning_rate=1', '--min_lr=0.1', '--warmup_steps=10',
                         '--max_steps=110')
    rates = [rate(options, step, 4 * step, 0.0) for step in range(111)]
    assert rates[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert rates[10] == 1 and rates[60] == pytest.approx(0.55) and rates[110] == pytest.approx(0.1)
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_without_max_steps_the_rate_follows_the_clock():
    options = options_of('--max_seconds=100')
    assert rate(options, 50, 200, 0.0) == 1
    assert rate(options, 50, 200, 50.0) == pytest.approx(0.5)
    assert rate(options, 10**6, 4 * 10**6, 200.0) == pytest.approx(0)


@pytest.mark.parametrize('given, limit', [
    ([], 150), (['--max_steps=9'], math.inf), (['--max_seconds=7', '--max_steps=9'], 7)])
def test_a_run_without_a_length_takes_150_seconds(given, limit):
    assert time_limit(options_of(*given)) == limit
