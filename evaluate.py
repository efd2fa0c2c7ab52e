"""Numbers about a checkpoint: how well it predicts a corpus, a text, or the last word of a passage.

    python evaluate.py --out_dir=out/shakespeare_char
    python evaluate.py --out_dir=out/shakespeare_char --file=poem.txt --per_line
    python evaluate.py --compare=out/a,out/b

LAMBADA (Paperno et al. 2016, arXiv:1606.06031): how often the model says a passage's last word.
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
from evaluation import measure, summary
from machine import open_machine
from run import build, load, must_fit
from script import UserError, progress_bar


@dataclass
class EvaluateConfig:
    """What to measure, and on what."""
    out_dir: str = 'out/stdlib'  # a run's folder (its best.pt, else ckpt.pt) or a checkpoint file
    dataset: str | None = None  # data/NAME/, of the same tokenizer; None: the run's own
    split: Literal['val', 'train'] = 'val'  # which part of it
    eval_tokens: int | None = None  # only the first so many of it
    file: str | None = None  # a text file in place of a data set
    per_line: bool = False  # also the loss of each line of the file
    context: int | None = None  # tokens in a window; None: the model's block_size
    stride: int | None = None  # tokens from one window to the next; None: context
    task: Literal['lambada'] | None = None  # the last words of the passages in the file
    compare: list[str] = field(default_factory=list)  # folders of runs: a table and a picture
    picture: str | None = None  # where compare draws; None: out/compare.png
    json: bool = False  # print one JSON object
    device: str = 'auto'  # cpu, cuda, cuda:1, mps; auto: the fastest there is
    dtype: Literal['auto', 'float32', 'bfloat16', 'float16'] = 'auto'  # of the matrix products
    compile = False  # the uncompiled model is what train.py evaluates


class Text:
    """The tokens of a text in memory, with what a split of a corpus has."""

    def __init__(self, ids):
        self.ids = np.asarray(ids, np.int64)

    def __len__(self):
        return len(self.ids)

    def windows(self, starts, length):
        """The windows of `length` tokens at starts: a tensor (B, length), int64."""
        return torch.from_numpy(np.stack([self.ids[start:start + length] for start in starts]))


def main(argv):
    options, _ = config.parse(EvaluateConfig, argv)
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr if options.json else out):
        with open_machine(options) as machine:
            state = load(options.out_dir)
            model, tokenizer = build(state)
            model.to(machine.device)
            start = time.perf_counter()
            numbers, lines = evaluate(options, state, model, tokenizer, machine)
            numbers['seconds'] = time.perf_counter() - start
    print(numbers)


def evaluate(options, state, model, tokenizer, machine):
    tokens, token_bytes = open_tokens(options, state, model, tokenizer)
    last = min(len(tokens), options.eval_tokens or len(tokens)) - 1
    with progress_bar(machine.rank == 0, total=last, unit=' tokens', unit_scale=True) as bar:
        sums = measure(model, tokens, machine, options.eval_tokens, token_bytes, options.context,
                       options.stride, bar=bar)
    return summary(sums.sum(dim=0)), []


def open_tokens(options, state, model, tokenizer):
    train, val, meta = open_corpus(options.dataset or state['config']['dataset'])
    token_bytes = tokenizer and torch.tensor([len(t) for t in tokenizer.token_bytes])
    must_fit(options.dataset, meta, state['tokenizer'], model.config.vocab_size)
    return val if options.split == 'val' else train, token_bytes


if __name__ == '__main__':
    script.run(main)
