"""A tokenized corpus on disk, data/NAME/, and the order in which training sees it.

    train, val, meta = open_corpus('shakespeare_char')
    windows = train.windows(window_starts(np.arange(0, 16), len(train), 256, seed=1), 257)

The order is a function of the seed, not a state: window i is the same for any number of processes
and after any interruption, and finding it takes neither memory nor time, however long the corpus.
"""

import json
import math
import os

import numpy as np
import torch

import config
import prepare
from script import UserError
from tokenizer import tiktoken_spec

HEADER = [20240520, 1]  # llm.c's magic number and version
GOLDEN = np.uint64(0x9e3779b97f4a7c15)  # SplitMix64's step


class Tokens:
    """A split: `len` token ids, of one file or of several after another, read where needed.

    Files are bare little-endian ids, or have the header of 1 KiB that llm.c writes: 256 int32, the
    first three HEADER and the number of ids, which are uint16.
    """

    def __init__(self, paths, dtype, vocab_size, count=None):
        self.paths, self.vocab_size = paths, vocab_size
        self.shards = [open_shard(path, np.dtype(dtype)) for path in paths]
        self.ends = np.cumsum([count for *_, count in self.shards])
        if count not in (None, len(self)):
            raise UserError(f'{paths[0]} is half made: it has {len(self):,} tokens, meta.json says '
                            f'{count:,}; run prepare.py again')

    def __len__(self):
        return int(self.ends[-1])

    def read(self, start, length):
        """The ids from start on, as they are on disk."""
        parts, number = [], int(np.searchsorted(self.ends, start, 'right'))
        while length > 0:
            file, dtype, offset, count = self.shards[number]
            at = start - (self.ends[number] - count)
            file.seek(offset + at * dtype.itemsize)
            ids = np.frombuffer(file.read(min(length, count - at) * dtype.itemsize), dtype)
            parts, number = [*parts, ids], number + 1
            start, length = start + len(ids), length - len(ids)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def windows(self, starts, length):
        """The windows of `length` tokens at starts: a tensor (B, length), int64."""
        ids = np.stack([self.read(start, length) for start in starts]).astype(np.int64)
        if ids.max() >= self.vocab_size:
            row, column = np.argwhere(ids >= self.vocab_size)[0]
            place = starts[row] + column
            path = self.paths[np.searchsorted(self.ends, place, 'right')]
            error = UserError(f'{path}: token {place:,} of the split is {ids[row, column]}, '
                              f'beyond the vocabulary of {self.vocab_size:,} ids')
            error.any_rank = True
            raise error
        return torch.from_numpy(ids)


def open_shard(path, dtype):
    """(file, dtype, offset, count): where the ids of a token file are; UserError if it is cut."""
    file, size = open(path, 'rb', buffering=0), path.stat().st_size
    head = np.frombuffer(file.read(12), '<i4').tolist() if size >= 12 else []
    if head[:2] == HEADER:
        if size != 1024 + 2 * head[2]:
            raise UserError(f'{path} is half made: it has {size:,} bytes, its header says '
                            f'{head[2]:,} tokens of 2')
        return file, np.dtype('<u2'), 1024, head[2]
    if size % dtype.itemsize:
        raise UserError(f'{path} has {size:,} bytes, no whole number of {dtype} tokens')
    return file, dtype, 0, size // dtype.itemsize


def open_corpus(name):
    """(train, val, meta) of data/NAME/, prepared first where only its recipe is there."""
    folder, recipe = config.ROOT / 'data' / name, config.ROOT / 'data' / f'{name}.py'
    if not list(folder.glob('*train*.bin')):
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
            print(f'warning: {folder} was made with other options than are in {recipe} now; '
                  'prepare.py makes it anew')
    elif (folder / 'meta.pkl').exists():
        raise UserError(f"{folder} has nanoGPT's meta.pkl, which is not read; prepare it again")
    else:
        meta = {'tokenizer': gpt2_or_none(), 'vocab_size': 50257, 'dtype': 'uint16', 'tokens': {}}
        print(f"{folder} has no meta.json: its tokens are taken as GPT-2's (50,257 ids)")
    return *(open_split(folder, split, meta) for split in ('train', 'val')), meta


def open_split(folder, split, meta):
    """The Tokens of all files in the folder that have the split in their name, in sorted order."""
    paths = sorted(folder.glob(f'*{split}*.bin'))
    if not paths:
        raise UserError(f'{folder} has no {split}.bin; run prepare.py again')
    return Tokens(paths, np.dtype(meta['dtype']).newbyteorder('<'), meta['vocab_size'],
                  meta['tokens'].get(split))


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
        state = mix(state + np.asarray(number, np.uint64) + GOLDEN)
    return state


def permute(index, n, keys):
    """The places of `index` (B,) in random orders of range(n) that the keys (B,) name.

    A Feistel network over pairs of digits, the base of each about the root of n, walked until it
    lands below n (Black & Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    bases = np.array([math.isqrt(n - 1) + 1, -(-n // (math.isqrt(n - 1) + 1))], np.uint64)
    steps = np.arange(1, 7, dtype=np.uint64) * GOLDEN
    place, outside = index.astype(np.uint64), np.ones(len(index), bool)
    while outside.any():
        (left, right), walking = np.divmod(place[outside], bases[1]), keys[outside]
        for turn in range(6):
            base = bases[turn % 2]
            scrambled = mix(right + walking + steps[turn])
            left, right = right, (left + scrambled % base) % base
        place[outside] = left * bases[1] + right
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
