"""Numbers about a checkpoint: how well it predicts a corpus, a text, or the last word of a passage.

    python evaluate.py --out_dir=out/shakespeare_char
    python evaluate.py --out_dir=out/shakespeare_char --file=poem.txt --per_line
    python evaluate.py --out_dir=out/gpt2 --task=lambada
    python evaluate.py --compare=out/a,out/b
"""

import contextlib
import json
import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

import config
import script
from corpus import open_corpus
from evaluation import measure, read_text, summary
from lambada import lambada
from machine import open_machine
from run import build, load, must_fit, plot_runs, read_log
from script import UserError, progress_bar


@dataclass
class EvaluateConfig:
    """What to measure, and on what."""
    out_dir: str = 'out/stdlib'  # a run's folder (its best.pt, else ckpt.pt) or a checkpoint file
    dataset: str | None = None  # data/NAME/, of the same tokenizer; None: the run's own
    split: Literal['val', 'train'] = 'val'  # which part of it
    eval_tokens: int | None = None  # only the first so many of it
    file: str | None = None  # a text file in place of a data set
    per_line: bool = False  # also the loss of each line of the file, after the lines before it
    context: int | None = None  # tokens in a window; None: the model's block_size
    stride: int | None = None  # from one window to the next; None: context; less: a longer past
    task: Literal['lambada'] | None = None  # the last words of passages; file None: the recipe's
    compare: list[str] = field(default_factory=list)  # folders of runs: a table and a picture
    picture: str | None = None  # the file that compare draws; None: out/compare.png
    json: bool = False  # print one JSON object
    device: str = 'auto'  # cpu, cuda, cuda:1, mps; auto: the fastest there is
    dtype: Literal['auto', 'float32', 'bfloat16', 'float16'] | None = None  # None: the run's own
    compile = False  # train.py evaluates the uncompiled model, too


class Text:
    """The tokens of a text in memory, read as those of a corpus are."""

    def __init__(self, ids):
        self.ids = np.asarray(ids, np.int64)

    def __len__(self):
        return len(self.ids)

    def windows(self, starts, length):
        return torch.from_numpy(np.stack([self.ids[start:start + length] for start in starts]))


def main(argv):
    options, given = config.parse(EvaluateConfig, argv)
    check(options, given)
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr if options.json else out):
        numbers = compare(options) if options.compare else evaluate(options)
    if numbers and options.json:
        print(json.dumps(finite(numbers)))


def finite(value):
    """The same, with None for the numbers that JSON has no word for."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def evaluate(options):
    """Print the numbers of a checkpoint; returns them as a dict, but by rank 0 only."""
    state = load(options.out_dir)
    options.dtype = options.dtype or state['config'].get('dtype', 'auto')
    with open_machine(options) as machine:
        model, tokenizer = build(state)
        check_model(options, model, tokenizer)
        model.to(machine.device)
        print(f'{options.out_dir} (step {state.get("step", 0):,}), '
              f'{sum(p.numel() for p in model.parameters()):,} parameters; {machine}', flush=True)
        begin = time.perf_counter()
        if options.task:
            numbers = lambada(model, tokenizer, options.file, options.context, machine)
        else:
            work = evaluate_file if options.file else evaluate_split
            numbers = work(options, state, model, tokenizer, machine)
        numbers['seconds'] = round(time.perf_counter() - begin, 3)
        show(numbers)
        return None if machine.rank else numbers


def check(options, given):
    """UserError for options that don't fit each other."""
    if options.per_line and not options.file:
        raise UserError('--per_line needs --file=FILE')
    unused = {'task': ('eval_tokens', 'per_line', 'stride', 'dataset', 'split'),
              'file': ('dataset', 'split')}
    for name, others in unused.items():
        for other in others if getattr(options, name) else ():
            if given.get(other):
                raise UserError(f'--{other} means nothing with --{name}={getattr(options, name)}')


def check_model(options, model, tokenizer):
    """UserError for options that don't fit the checkpoint."""
    limits = {'context': (1, model.config.block_size), 'eval_tokens': (2, math.inf),
              'stride': (1, options.context or model.config.block_size)}
    for name, (lower, upper) in limits.items():
        value = getattr(options, name)
        if value is not None and not lower <= value <= upper:
            limit = f'at least {lower}' if upper == math.inf else f'from {lower} to {upper}'
            raise UserError(f'{name} must be {limit}, not {value}')
    if (options.file or options.task) and tokenizer is None:
        raise UserError(f'{options.out_dir} has no tokenizer, so it can\'t read a text')


def show(numbers):
    """A line for each number, as a person reads it."""
    forms = {'loss': '{:.4f} nats per token', 'perplexity': '{:.4f}', 'bits_per_byte': '{:.4f}',
             'accuracy': '{:.2%}', 'top5_accuracy': '{:.2%}', 'padding': '{:.1%}',
             'seconds': '{:.1f}'}
    for line in numbers.get('lines', []):
        print(f'line {line["line"]:5}  {line["loss"]:8.4f}  {line["tokens"]:6,} tokens  '
              f'{line["text"][:60]}')
    for name, value in numbers.items():
        if name != 'lines' and value is not None:
            label = name.replace('top5', 'top-5').replace('_', ' ')
            print(f'{label:15}', forms.get(name, '{:,}').format(value))


# --- a corpus, or a text -------------------------------------------------------------------------

def evaluate_split(options, state, model, tokenizer, machine):
    name = options.dataset or state['config'].get('dataset')
    if name is None:
        raise UserError(f'{options.out_dir} was not trained here; name a data set, --dataset=NAME')
    *splits, meta = open_corpus(name)
    must_fit(name, meta, state['tokenizer'], model.config.vocab_size)
    tokens = splits[options.split == 'val']
    if len(tokens) < 2:
        raise UserError(f'{name} has {len(tokens)} tokens for {options.split}; that takes 2')
    return summary(measure_all(options, model, tokens, tokenizer, machine)[0])


def evaluate_file(options, state, model, tokenizer, machine):
    text = read_text(options.file)
    tokens = Text(tokenizer.encode(text))
    if len(tokens) < 2:
        raise UserError(f'{options.file} is too short: it has {len(tokens)} tokens, and the first '
                        'is not predicted')
    groups = line_numbers(text, tokens.ids, tokenizer) if options.per_line else None
    sums = measure_all(options, model, tokens, tokenizer, machine, groups)
    lines = [{'line': i + 1, **summary(row), 'text': line}
             for i, (row, line) in enumerate(zip(sums, text.split('\n'), strict=False)) if row[1]]
    return summary(sums.sum(dim=0)) | ({'lines': lines} if options.per_line else {})


def measure_all(options, model, tokens, tokenizer, machine, groups=None):
    """The sums of `measure` with the options, behind a progress bar."""
    lengths = tokenizer and torch.tensor([len(token) for token in tokenizer.token_bytes])
    total = min(len(tokens), options.eval_tokens or len(tokens)) - 1
    with progress_bar(machine.rank == 0, total=total, unit=' tokens', unit_scale=True) as bar:
        return measure(model, tokens, machine, options.eval_tokens, lengths, options.context,
                       options.stride, groups, bar)


def line_numbers(text, ids, tokenizer):
    """Which line each token begins in, from 0, (N,); a newline ends the line before it."""
    pieces = map(str.encode, text) if tokenizer.kind == 'char' else (  # it may be an unknown one
        tokenizer.token_bytes[i] for i in ids)
    sizes = [len(piece) for piece in pieces]
    newlines = np.flatnonzero(np.frombuffer(text.encode(), np.uint8) == ord('\n'))
    return torch.from_numpy(np.searchsorted(newlines, np.cumsum([0] + sizes[:-1])))


# --- several runs --------------------------------------------------------------------------------

def compare(options):
    """Print a table of runs and draw their losses; returns the table as a dict of dicts."""
    logs = {folder: read_log(config.find(folder)) for folder in options.compare}
    table = {folder: row(folder, records) for folder, records in logs.items()}
    print('| run | parameters | tokens | time | best loss | bits per byte |')
    print('|---|---|---|---|---|---|')
    for folder, numbers in table.items():
        seconds, bits = round(numbers['seconds']), numbers['bits_per_byte']
        print(f'| {folder} | {numbers["parameters"]:,} | {numbers["tokens"]:,} | '
              f'{seconds // 60}:{seconds % 60:02} | {numbers["loss"]:.4f} | '
              f'{"" if bits is None else f"{bits:.4f}"} |')
    picture = Path(options.picture or config.ROOT / 'out' / 'compare.png').expanduser()
    drawn = plot_runs(logs, picture)
    print(f'the curves: {script.short(picture) if drawn else "pip install matplotlib"}')
    return table


def row(folder, records):
    """The numbers of a run: its size, its length, and its best evaluation."""
    evaluated = [record for record in records if 'val_loss' in record]
    if not evaluated:
        raise UserError(f'{folder}: there is no log.jsonl with an evaluation; train.py makes it')
    best = min(evaluated, key=lambda record: record['val_loss'])
    model, _ = build(load(folder))
    return {'parameters': sum(p.numel() for p in model.parameters()),
            'tokens': records[-1]['tokens'], 'seconds': records[-1]['seconds'],
            'loss': best['val_loss'], 'bits_per_byte': best['bits_per_byte']}


if __name__ == '__main__':
    script.run(main)
