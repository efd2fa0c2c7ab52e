"""Why a GPT is made as it is: what it loses when one part is changed, from outside the model.

    python docs/questions.py --question=residual
    python docs/questions.py --question=mask --seeds=1 --max_steps=100

Trains each variant of rung 4 of the ladder, narrower and shorter, in turns with the others, and
prints a table: the validation loss is the mean over the seeds, and its range.
"""

import contextlib
import io
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn as nn

import model
import train
from folio import checkpoint, cli
from folio.cli import UserError
from folio.journal import read_log
from folio.machine import Machine
from folio.options import parse
from prepare import open_corpus
from tools.measure import measure, summary, windows_over

BASE = ['config/ladder/4_blocks.py', '--n_embd=64', '--block_size=64']
DATASET = 'shakespeare_char'


Question = Literal['position', 'scale', 'mask', 'residual', 'heads', 'mlp', 'rnn']


@dataclass
class QuestionConfig:
    """What to ask, and how long to look for the answer."""
    question: Question = 'position'  # what to ask
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])  # one run of each variant a seed
    max_steps: int = 1000  # the length of each run


# --- the changes ---------------------------------------------------------------------------------

attend, make_gpt = model.attend, model.GPT.__init__


def attend_undivided(q, k, v, dropout=0.0):
    """Without the division by sqrt(D)."""
    return attend(q * q.size(-1) ** 0.5, k, v, dropout)


def with_variance_1(self, options):
    """Queries and keys of variance 1 before training, as Vaswani et al. 2017 (arXiv:1706.03762,
    footnote 4) suppose; GPT-2's are smaller."""
    make_gpt(self, options)
    for block in self.blocks:
        queries_and_keys = block.attention.qkv.weight[:2 * options.n_embd]
        with torch.no_grad():
            queries_and_keys.normal_(std=options.n_embd ** -0.5)


def attend_zero(before):
    """Attention whose mask puts a zero, not minus infinity, before or after the softmax."""
    def masked(q, k, v, dropout=0.0):
        T, S = q.size(2), k.size(2)
        future = torch.ones(T, S, dtype=torch.bool, device=q.device).triu(S - T + 1)
        scores = q @ k.transpose(2, 3) * q.size(-1) ** -0.5
        if before:
            return scores.masked_fill(future, 0).softmax(dim=-1) @ v
        return scores.softmax(dim=-1).masked_fill(future, 0) @ v
    return masked


def without_residual(self, x, rope, cache):
    return self.mlp(self.norm2(self.attention(self.norm1(x), rope, cache)))


def with_one_mlp(self, options):
    make_gpt(self, options)
    for block in self.blocks[1:]:
        block.mlp = self.blocks[0].mlp


class Recurrence(nn.Module):
    """A GRU (Cho et al. 2014, arXiv:1406.1078) in the place of attention: one state of C numbers is
    all that it knows of the past, and each token waits for the one before it."""

    def __init__(self, options, layer):
        super().__init__()
        self.rnn = nn.GRU(options.n_embd, options.n_embd, batch_first=True)
        self.state = None

    def forward(self, x, rope, cache):
        before = self.state if cache and cache.length else None  # as a cache keeps keys and values
        with torch.autocast(x.device.type, enabled=False):
            y, state = self.rnn(x.float(), before)
        self.state = state if cache else None
        return y


change = mock.patch.object
UNDIVIDED = change(model, 'attend', attend_undivided)
VARIANCE_1 = change(model.GPT, '__init__', with_variance_1)
UNCONNECTED = change(model.Block, 'forward', without_residual)
RECURRENT = change(model, 'Attention', Recurrence)
UNSTACKED = change(model.GPT, 'stacked_matrices', lambda self: {})  # the GRU has no qkv
QUESTIONS = {  # question: {variant: (options, *changes)}
    'position': {name: ([f'--position={name}'],) for name in ('learned', 'rope', 'none')},
    'scale': {'4 heads of 16, divided': ([],), '4 heads of 16, not divided': ([], UNDIVIDED),
              '1 head of 64, divided': (['--n_head=1'],),
              '1 head of 64, not divided': (['--n_head=1'], UNDIVIDED),
              'variance 1, 1 head of 64, divided': (['--n_head=1'], VARIANCE_1),
              'variance 1, 1 head of 64, not divided': (['--n_head=1'], VARIANCE_1, UNDIVIDED)},
    'mask': {'minus infinity before the softmax': ([],),
             'zero before the softmax': ([], change(model, 'attend', attend_zero(True))),
             'zero after the softmax': ([], change(model, 'attend', attend_zero(False)))},
    'residual': {'4 blocks, with': ([],), '4 blocks, without': ([], UNCONNECTED),
                 '1 block, with': (['--n_layer=1'],),
                 '1 block, without': (['--n_layer=1'], UNCONNECTED)},
    'heads': {f'{n} of {64 // n} channels': ([f'--n_head={n}'],) for n in (1, 2, 4, 8, 16)},
    'mlp': {'one in each block': ([],),
            'the same in every block': ([], change(model.GPT, '__init__', with_one_mlp)),
            'none': (['--mlp=none'],),
            'none, 12 blocks': (['--mlp=none', '--n_layer=12'],)},
    'rnn': {'attention': ([],), 'attention, RoPE': (['--position=rope'],),
            'GRU': ([], RECURRENT, UNSTACKED)},
}


# --- the measurement -----------------------------------------------------------------------------

def main(argv):
    options, _ = parse(QuestionConfig, argv)
    if not options.seeds:
        raise UserError('--seeds= has no seed')
    variants = QUESTIONS[options.question]
    results = {name: [] for name in variants}
    for seed in options.seeds:
        for name, (more, *changes) in variants.items():
            with contextlib.ExitStack() as changed:
                for one in changes:
                    changed.enter_context(one)
                results[name].append(one_run(seed, options.max_steps, more))
            print(f'{name}, seed {seed}: {results[name][-1][1]:.4f}', file=sys.stderr)
    print_table(results, with_last=options.question == 'mask')


def print_table(results, with_last):
    """Print a row for each variant, from the list of what one_run returned. with_last: also the
    loss of the last tokens."""
    last_title, last_rule = ('| of each window\'s last token ', '---|') if with_last else ('', '')
    print(f'| | parameters | validation loss | range {last_title}| tokens/s |')
    print(f'|---|---|---|---|{last_rule}---|')
    for name, measured in results.items():
        sizes, losses, lasts, speeds = zip(*measured, strict=True)
        last = f'| {statistics.mean(lasts):.3f} ' if with_last else ''
        print(f'| {name} | {sizes[0]:,} | {statistics.mean(losses):.3f} | {min(losses):.3f} to '
              f'{max(losses):.3f} {last}| {statistics.median(speeds):,.0f} |')


def one_run(seed, steps, more):
    """(parameters, validation loss, loss of the last tokens, tokens per second) of one run."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        code = train.main([*BASE, f'--max_steps={steps}', f'--eval_interval={steps}',
                           f'--seed={seed}', f'--out_dir={folder}/run', *more])
        if code:
            raise UserError('interrupted')
        records = read_log(Path(folder, 'run'))
        network = model.from_checkpoint(checkpoint.load(Path(folder, 'run')))
        val = open_corpus(DATASET)[1]
    count, context = min(len(val), 2000), network.config.block_size
    later = (torch.arange(count) > context).long()  # 1 for each token that ends a window
    windows = windows_over(count - 1, context, stride=1)
    sums = measure(network, val, Machine(torch.device('cpu')), windows, groups=later)
    size = sum(p.numel() for p in network.parameters())
    speed = statistics.median(record['tokens_per_second'] for record in records)
    return size, records[-1]['val_loss'], summary(sums[1])['loss'], speed


if __name__ == '__main__':
    cli.run(main)
