"""A tokenized corpus on disk, data/NAME/, and the order in which training sees it.

    train, val, meta = open_corpus('shakespeare_char')
    windows = train.windows(window_starts(np.arange(0, 16), len(train), 256, seed=1), 257)

The order is a function of the seed, not a state: window i is the same for any number of processes
and after any interruption, and finding it takes neither memory nor time, however long the corpus.
"""

import json
import os

import numpy as np
import torch

import config
import prepare
from script import UserError
from tokenizer import tiktoken_spec


class Tokens:
    """A split: `len` token ids, read from disk where they are needed."""

    def __init__(self, path, dtype, vocab_size, count=None):
        size, width = path.stat().st_size, np.dtype(dtype).itemsize
        if count is not None and size != count * width:
            raise UserError(f'{path} is half made: it has {size:,} bytes, meta.json says {count:,} '
                            'tokens; run prepare.py again')
        if size % width:
            raise UserError(f'{path} has {size:,} bytes, no whole number of {dtype} tokens')
        self.path, self.vocab_size = path, vocab_size
        self.ids = np.memmap(path, dtype, mode='r') if size else np.zeros(0, dtype)

    def __len__(self):
        return len(self.ids)

    def windows(self, starts, length):
        """The windows of `length` tokens at starts: a tensor (B, length), int64."""
        ids = np.stack([self.ids[start:start + length] for start in starts]).astype(np.int64)
        if ids.max() >= self.vocab_size:
            row, column = np.argwhere(ids >= self.vocab_size)[0]
            error = UserError(f'{self.path}: token {starts[row] + column:,} is {ids[row, column]}, '
                              f'beyond the vocabulary of {self.vocab_size:,} ids')
            error.any_rank = True
            raise error
        return torch.from_numpy(ids)


def open_corpus(name):
    """(train, val, meta) of data/NAME/, prepared first where only its recipe is there."""
    folder, recipe = config.ROOT / 'data' / name, config.ROOT / 'data' / f'{name}.py'
    if not (folder / 'train.bin').exists():
        if not recipe.exists():
            known = ', '.join(sorted(path.stem for path in recipe.parent.glob('*.py')))
            raise UserError(f'no data set or recipe is called {name}; recipes: {known}; for a text '
                            f'of your own: python prepare.py --input=FILE --name={name}')
        if 'RANK' in os.environ:
            raise UserError(f'{folder} is not there yet; first run python prepare.py {recipe}')
        prepare.main([str(recipe)])
    if (folder / 'meta.json').exists():
        meta = json.loads((folder / 'meta.json').read_text(encoding='utf-8'))
        if recipe.exists() and vars(prepare.read_options([str(recipe)])) != meta['recipe']:
            print(f'warning: {recipe} changed after {folder} was made; prepare.py makes it anew')
    elif (folder / 'meta.pkl').exists():
        raise UserError(f"{folder} has nanoGPT's meta.pkl, which is not read; prepare it again")
    else:
        meta = {'tokenizer': gpt2_or_none(), 'vocab_size': 50257, 'dtype': 'uint16', 'tokens': {}}
        print(f"{folder} has no meta.json: its tokens are taken as GPT-2's (50,257 ids)")
    splits = [Tokens(folder / f'{split}.bin', np.dtype(meta['dtype']).newbyteorder('<'),
                     meta['vocab_size'], meta['tokens'].get(split)) for split in ('train', 'val')]
    return *splits, meta


def gpt2_or_none():
    try:
        return tiktoken_spec('gpt2')
    except UserError as error:
        print(f'no samples and no bits per byte: {error}')


# --- the order -----------------------------------------------------------------------------------

def mix(x):
    """Scramble an array of uint64: the finalizer of SplitMix64 (Steele et al. 2014)."""
    x = (x ^ (x >> 30)) * np.uint64(0xbf58476d1ce4e5b9)
    x = (x ^ (x >> 27)) * np.uint64(0x94d049bb133111eb)
    return x ^ (x >> 31)


def key(*numbers):
    """One well scrambled uint64 array for non-negative integers or arrays of them."""
    state = np.zeros(1, np.uint64)
    for number in numbers:
        state = mix(state + np.asarray(number, np.uint64) + np.uint64(0x9e3779b97f4a7c15))
    return state


def permute(index, n, keys):
    """The places of `index` (B,) in random orders of range(n) that the keys (B,) name.

    A Feistel network over the next power of four, walked until it lands below n (Black & Rogaway
    2002, "Ciphers with arbitrary finite domains").
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    place, outside = index.astype(np.uint64), np.ones(len(index), bool)
    while outside.any():
        left, right = place[outside] >> half, place[outside] & ((1 << half) - np.uint64(1))
        for turn in range(6):
            scrambled = mix(right + key(keys[outside], turn))
            left, right = right, left ^ (scrambled >> (np.uint64(64) - half))
        place[outside] = left << half | right
        outside = place >= n
    return place.astype(np.int64)


def window_starts(index, n_tokens, block_size, seed):
    """Where the training windows number `index` (B,) start, of N = n_tokens.

    An epoch has (N - T) // T of them, every T = block_size tokens from an offset below T on, in a
    random order; offset and order are the epoch's own.
    """
    n = (n_tokens - block_size) // block_size
    epoch, place = np.divmod(np.asarray(index, np.int64), n)
    keys = key(seed, epoch)
    offset = (mix(keys) % np.uint64(block_size)).astype(np.int64)
    return offset + block_size * permute(place, n, keys)
