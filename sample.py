"""Text out of a checkpoint, token by token.

    python sample.py --out_dir=out/shakespeare_char --start="ROMEO:"
    python sample.py --out_dir=out/stdlib --start=FILE:prompt.txt --num_samples=3 --temperature=0.5
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

import config
import script
from config import Text
from machine import choose_device, choose_dtype
from run import load_model
from script import UserError


@dataclass
class SampleConfig:
    """What to sample from, and how."""
    out_dir: str = 'out/stdlib'  # a run's folder (its best.pt, else ckpt.pt) or a checkpoint file
    start: Text | None = None  # the prompt; FILE:prompt.txt reads a file, - the standard input
    num_samples: int = 1  # one streams, several are printed as they end
    max_new_tokens: int = 500  # the length of each
    temperature: float = 0.8  # below 1 the likely gets likelier; 0: always the likeliest
    top_k: int | None = None  # draw from the k likeliest tokens only
    top_p: float | None = None  # draw from the fewest tokens that have this probability together
    stop: Text | None = None  # end before this text
    seed: int = 1337  # the same seed gives the same text
    device: str = 'auto'  # cpu, cuda, cuda:1, mps; auto: the fastest there is
    dtype: Literal['auto', 'float32', 'bfloat16', 'float16'] = 'auto'  # of weights and activations


class Continuation:
    """The text of one sample as its tokens come; it ends before the stop text."""

    def __init__(self, tokenizer, stop):
        self.decode, self.stop = tokenizer.stream(), stop
        self.text, self.taken, self.ended = '', 0, False

    def add(self, token):
        self.text += self.decode(token)
        at = self.text.find(self.stop, self.taken) if self.stop else -1
        if at >= 0:
            self.text, self.ended = self.text[:at], True

    def take(self):
        """What is new and certain: not an end that may yet become the stop text."""
        held = 0
        if self.stop and not self.ended:
            held = next(n for n in range(len(self.stop) - 1, -1, -1)
                        if self.text[self.taken:].endswith(self.stop[:n]))
        before, self.taken = self.taken, len(self.text) - held
        return self.text[before:self.taken]

    def rest(self):
        self.ended = True
        return self.take()


def main(argv):
    options, _ = config.parse(SampleConfig, argv)
    check(options)
    model, tokenizer = load_model(options.out_dir)
    if tokenizer is None:
        raise UserError(f'{options.out_dir} has no tokenizer, so its tokens have no text')
    device = choose_device(options.device)
    model.to(device, choose_dtype(options.dtype, device))
    prompt = read_prompt(options.start)
    ids = tokenizer.encode(prompt) if prompt else [tokenizer.start]
    if len(ids) > model.config.block_size:
        print(f'the prompt has {len(ids):,} tokens; the model sees the last '
              f'{model.config.block_size:,}', file=sys.stderr)
    idx = torch.tensor([list(ids)] * options.num_samples, dtype=torch.int64, device=device)
    tokens = model.generate(
        idx, options.max_new_tokens, options.temperature, options.top_k, options.top_p,
        tokenizer.vocab_size, torch.Generator(device).manual_seed(options.seed))
    if options.num_samples == 1:
        stream(tokens, prompt, Continuation(tokenizer, options.stop))
    else:
        print_all(tokens, prompt, [Continuation(tokenizer, options.stop) for _ in idx])


def check(options):
    for name, valid, rule in (('temperature', options.temperature >= 0, 'at least 0'),
                              ('top_k', options.top_k is None or options.top_k >= 1, 'at least 1'),
                              ('top_p', options.top_p is None or 0 < options.top_p <= 1,
                               'above 0 and at most 1'),
                              ('num_samples', options.num_samples >= 1, 'at least 1'),
                              ('max_new_tokens', options.max_new_tokens >= 0, 'at least 0')):
        if not valid:
            raise UserError(f'{name} must be {rule}, not {getattr(options, name)}')


def read_prompt(start):
    """The text of the option `start`; '' without one. UserError if it can't be read."""
    try:
        if start == '-':
            return sys.stdin.buffer.read().decode()
        if start and start.startswith('FILE:'):
            return Path(start[5:]).expanduser().read_bytes().decode()
        return (start or '').encode(errors='surrogateescape').decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'--start={start!r}: {error}') from None


def stream(tokens, prompt, text):
    """Print the prompt and one sample, each token as it comes."""
    print(prompt, end='', flush=True)
    for token in tokens:
        text.add(token.item())
        print(text.take(), end='', flush=True)
        if text.ended:
            break
    print(text.rest())


def print_all(tokens, prompt, texts):
    """Print the samples of a batch, each as it ends."""
    running = list(enumerate(texts))
    for batch in tokens:
        for i, text in running:
            text.add(batch[i].item())
            if text.ended:
                print(prompt + text.rest(), end='\n---\n', flush=True)
        running = [(i, text) for i, text in running if not text.ended]
        if not running:
            return
    for _, text in running:
        print(prompt + text.rest(), end='\n---\n')


if __name__ == '__main__':
    script.run(main)
