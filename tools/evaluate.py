"""Numbers about a checkpoint: how well it predicts a corpus, a text, or the last word of a passage.

    python tools/evaluate.py out/shakespeare_char
    python tools/evaluate.py out/shakespeare_char --file=poem.txt --per_line
    python tools/evaluate.py out/gpt2 --task=lambada
    python tools/evaluate.py --compare=out/a,out/b
"""

import contextlib
import json
import os
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from folio import cli  # first of all, for then an interrupt while torch is loaded is quiet

# isort: split
import torch

import folio.options
from folio import journal
from folio.checkpoint import check_vocabulary, damaged, inherit, load
from folio.cli import UserError
from folio.machine import open_machine
from folio.options import DataName, InPath, OutPath
from folio.tokenizer import Tokenizer
from model import from_checkpoint
from prepare import open_corpus
from tools import lambada
from tools.measure import TextTokens, measure, read_text, summary, windows_over

ROWS = 2048  # tokens that go through the model together, about


@dataclass
class EvaluateConfig:
    """What to measure, and on what."""
    out_dir: InPath = 'out/stdlib'  # a run's folder (best.pt, else ckpt.pt) or a checkpoint file
    dataset: DataName | None = None  # data/NAME/, of the same tokenizer; None: the run's own
    split: Literal['val', 'train'] = 'val'  # which part of it
    eval_tokens: Annotated[int | None, '>= 2'] = None  # only the first so many of it
    file: InPath | None = None  # a text file in place of a data set
    per_line: bool = False  # also the loss of each line of the file, after the lines before it
    context: Annotated[int | None, '>= 1'] = None  # tokens in a window; None: block_size
    stride: Annotated[int | None, '>= 1'] = None  # between windows; None: context; less: more past
    task: Literal['lambada'] | None = None  # the last words of passages; file None: the recipe's
    compare: list[InPath] = field(default_factory=list)  # folders of runs: a table and a picture
    picture: OutPath | None = None  # the file that compare draws; None: out/compare.png
    json: bool = False  # print one JSON object
    device: str = 'auto'  # cpu, cuda, cuda:1, mps; auto: the fastest there is
    dtype: Literal['auto', 'float32', 'bfloat16', 'float16'] = 'auto'  # not given: the run's own


def main(argv):
    """Print the numbers of a checkpoint, or the table of several runs."""
    options, given = folio.options.parse(EvaluateConfig, argv, bare='out_dir')
    with contextlib.redirect_stdout(sys.stderr if options.json else sys.stdout):
        if options.compare:
            with damaged(f'a log.jsonl of {", ".join(options.compare)}'):
                numbers = compare(options)
        else:
            numbers = evaluate(options, given)
    if numbers and options.json:
        text = json.dumps(numbers)  # in which NaN and Infinity may stand, which are no JSON
        print(json.dumps(json.loads(text, parse_constant=lambda name: None)))


def evaluate(options, given):
    """Print the numbers of a checkpoint; returns them as a dict, but by rank 0 only."""
    with open_machine(options) as machine:
        options, state, model, tokenizer = machine.together(read_checkpoint, options, given)
        options = resolve_windows(options, model, tokenizer)
        machine.choose(options, given, ROWS, model.config.n_embd)
        print_checkpoint(options, state, model, machine)
        model = model.to(machine.device)
        begin = time.perf_counter()
        if options.task:
            numbers = lambada.lambada(model, tokenizer, options.file, options.context, machine)
        else:
            numbers = evaluate_tokens(options, model, tokenizer, machine)
        numbers['seconds'] = round(time.perf_counter() - begin, 3)
        print_numbers(numbers)
        return None if machine.rank else numbers


def read_checkpoint(options, given):
    """(options, checkpoint's dict, model, Tokenizer or None): the run's own dtype and data set
    unless others are given."""
    state = load(options.out_dir)
    options = inherit(options, given, state['config'], fixed=[], names=['dtype', 'dataset'])
    with damaged(options.out_dir):
        model = from_checkpoint(state).float()
        tokenizer = Tokenizer(state['tokenizer']) if state['tokenizer'] else None
        if tokenizer and tokenizer.vocab_size > model.config.vocab_size:
            raise ValueError(f'its tokenizer has {tokenizer.vocab_size:,} ids, its model '
                             f'{model.config.vocab_size:,}')
    return options, state, model, tokenizer


def resolve_windows(options, model, tokenizer):
    """The options with context and stride derived; UserError for those that don't fit each other,
    or the checkpoint."""
    limit = model.config.block_size
    context = options.context or limit
    stride = options.stride or context
    if not stride <= context <= limit:
        raise UserError(f'context must be from 1 to {limit}, and stride from 1 to {context}')
    if options.per_line and not options.file:
        raise UserError('--per_line needs --file=FILE')
    if (options.file or options.task) and tokenizer is None:
        raise UserError(f'{options.out_dir} has no tokenizer, so it can\'t read a text')
    return replace(options, context=context, stride=stride)


def print_checkpoint(options, state, model, machine):
    """Say what is measured, where, and what made it."""
    parameters = sum(p.numel() for p in model.parameters())
    print(f'{options.out_dir} (step {state.get("step", 0):,}), {parameters:,} parameters; '
          f'{machine}')
    versions = [f'{name} {value}' for name, value in state.get('versions', {}).items()
                if isinstance(value, str)]
    print('trained with', ', '.join(versions) or 'unknown versions', flush=True)


def print_numbers(numbers):
    """A line for each number, as a person reads it."""
    forms = {'loss': '{:.4f} nats per token', 'perplexity': '{:.4f}', 'bits_per_byte': '{:.4f}',
             'accuracy': '{:.2%}', 'top5_accuracy': '{:.2%}', 'seconds': '{:.1f}'}
    for line in numbers.get('lines', []):
        print(f'line {line["line"]:5}  {line["loss"]:8.4f}  {line["tokens"]:6,} tokens  '
              f'{line["text"][:60]}')
    for name, value in numbers.items():
        if name != 'lines' and value is not None:
            label = name.replace('top5', 'top-5').replace('_', ' ')
            print(f'{label:15}', forms.get(name, '{:,}').format(value))


# --- a corpus, or a text -------------------------------------------------------------------------

def evaluate_tokens(options, model, tokenizer, machine):
    """The numbers of a split or a text, a dict; with per_line also those of the text's lines."""
    text = machine.together(read_text, options.file) if options.file else None
    tokens = (split_tokens(options, model, tokenizer, machine) if text is None
              else TextTokens(tokenizer.encode(text)))
    if len(tokens) < 2:
        raise UserError(f'{options.file or options.dataset} is too short: it has {len(tokens)} '
                        'tokens, and the first is not predicted')
    lengths = tokenizer and torch.tensor(tokenizer.text_lengths)
    groups = line_numbers(text, tokens.ids, tokenizer) if options.per_line else None
    last = min(len(tokens), options.eval_tokens or len(tokens)) - 1  # they have one before them
    windows = windows_over(last, options.context, options.stride)
    sums = measure(model, tokens, machine, windows, lengths, groups)
    numbers = summary(sums.sum(dim=0))
    if options.per_line:
        lines = zip(sums, text.split('\n'), strict=False)
        numbers['lines'] = [{'line': i, **summary(row), 'text': line}
                            for i, (row, line) in enumerate(lines, 1) if row[1]]
    return numbers


def split_tokens(options, model, tokenizer, machine):
    """The Tokens of a data set's split; UserError for one of another tokenizer."""
    name, spec = options.dataset, tokenizer and tokenizer.spec
    if name is None:
        raise UserError(f'{options.out_dir} was not trained here; name a data set, --dataset=NAME')
    train_tokens, val_tokens, meta = machine.together(open_corpus, name, spec)
    check_vocabulary(name, meta, spec, model.config.vocab_size)
    return val_tokens if options.split == 'val' else train_tokens


def line_numbers(text, ids, tokenizer):
    """Which line each token begins in, from 0, (N,); a newline ends the line before it."""
    newlines = [tokenizer.token_bytes[i].count(b'\n') for i in ids]
    if sum(newlines) != text.count('\n'):
        raise UserError('--per_line: the tokens of this checkpoint don\'t keep all newlines')
    return torch.tensor([0, *newlines[:-1]]).cumsum(0)


# --- several runs --------------------------------------------------------------------------------

def compare(options):
    """Print a table of runs and draw their losses; returns the table as a dict of dicts."""
    logs = {name: journal.read_log(folio.options.find(name)) for name in options.compare}
    table = {name: numbers_of_run(name, records) for name, records in logs.items()}
    print('| run | parameters | tokens | time | best loss | bits per byte |')
    print('|---|---|---|---|---|---|')
    for name, numbers in table.items():
        seconds, bits = round(numbers['seconds']), numbers['bits_per_byte']
        print(f'| {name} | {numbers["parameters"]:,} | {numbers["tokens"]:,} | '
              f'{seconds // 60}:{seconds % 60:02} | {numbers["loss"]:.4f} | '
              f'{"" if bits is None else f"{bits:.4f}"} |')
    default = folio.options.ROOT / 'out' / 'compare.png'
    draw_runs(logs, Path(os.path.expanduser(options.picture or default)))
    return table


def numbers_of_run(name, records):
    """A row of the table: a run's size, its length, and its best evaluation."""
    evaluated = [record for record in records if 'val_loss' in record]
    if not evaluated:
        raise UserError(f'{name}: there is no log.jsonl with an evaluation; train.py makes it')
    best = min(evaluated, key=lambda record: record['val_loss'])
    return {'parameters': sum(p.numel() for p in from_checkpoint(load(name)).parameters()),
            'tokens': records[-1]['tokens'], 'seconds': records[-1]['seconds'],
            'loss': best['val_loss'], 'bits_per_byte': best['bits_per_byte']}


def draw_runs(logs, path):
    """Draw the losses of several runs (name: records) into the picture `path`, and say so."""
    logs = {' ' + cli.one_line(name).replace('$', r'\$'): records  # a $ begins formulas, a _ hides
            for name, records in logs.items()}
    try:
        drawn = journal.draw_curves(logs, path)
    except (OSError, ValueError) as error:  # ValueError: an unknown kind of picture
        raise UserError(f'{path} could not be drawn: {error}') from None
    print(f'the curves: {cli.short(path) if drawn else "pip install matplotlib"}')


if __name__ == '__main__':
    cli.run(main)
