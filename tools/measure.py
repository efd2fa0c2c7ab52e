"""How well a model predicts tokens: loss, bits per byte, and how often it is right.

    windows = windows_over(len(tokens) - 1, context=256, stride=256)
    numbers = summary(measure(model, tokens, machine, windows)[0])
    numbers['loss'], numbers['accuracy']

Each process takes its share of the windows; the sums over all of them are the same for any number.
"""

import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F

from folio import options, texts
from folio.cli import progress_bar
from train import sequences_at_once


class TextTokens:
    """The tokens of a text in memory, ids (N,), read as those of a corpus are."""

    def __init__(self, ids):
        self.ids = np.asarray(ids, np.int64)

    def __len__(self):
        return len(self.ids)

    def windows(self, starts, length):
        """The `length` ids from each start on: int64 (B, length)."""
        return np.stack([self.ids[start:start + length] for start in starts])


def read_text(path):
    """The text of a plain file; UserError if it can't be read."""
    with texts.readable(options.find(path)) as file:
        return texts.plain(file.read(), path)


def windows_over(last, context, stride):
    """The windows that make `last` predictions, three arrays: where each starts, its length, and
    how many of its predictions, at its end, the window before did not make."""
    starts = np.arange(0, max(0, last - context) + stride, stride)
    ends = np.minimum(starts + context, last)
    return starts, ends - starts, np.diff(ends, prepend=0)


def batches_of(windows, vocab_size):
    """(starts, length, new) of successive windows that are alike and that one pass takes together;
    starts: an array (B,)."""
    triples = zip(*windows, strict=True)
    for (length, new), alike in itertools.groupby(triples, key=lambda window: window[1:]):
        size = sequences_at_once(length, vocab_size)
        while batch := list(itertools.islice(alike, size)):
            yield np.array([start for start, _, _ in batch]), length, new


def score(logits, targets):
    """(nats, ranks) on the CPU for logits (N, V) and targets (N,): minus the log-probability of
    each target, and how many ids come before it: of equal logits the lower id does, and of logits
    that are not numbers all."""
    logits, targets = logits.float(), targets[:, None]
    nats = F.cross_entropy(logits, targets[:, 0], reduction='none')
    ids = torch.arange(logits.size(-1), device=logits.device)
    own = logits.gather(-1, targets)  # (N, 1)
    behind = (logits < own) | (logits == own) & (ids >= targets)  # (N, V)
    return nats.cpu().double(), (~behind).sum(dim=-1).cpu()


@torch.no_grad()
def measure(model, tokens, machine, windows, token_bytes=None, groups=None):
    """Sums over the predictions in windows, which are as in windows_over, by a model in eval mode:
    a row for each group, (G, 5), for `summary`.

    token_bytes: the length of each id's bytes, (V,). groups: each token's group, (N,); None: 0.
    """
    if groups is None:
        groups = torch.zeros(1, dtype=torch.int64).expand(len(tokens))
    sums = torch.zeros(int(groups.max()) + 1, 5, dtype=torch.float64)
    batches, total = batches_of(windows, model.config.vocab_size), int(windows[2].sum())
    with progress_bar(machine.rank == 0, total=total, unit=' tokens', unit_scale=True) as bar:
        for starts, length, new in itertools.islice(batches, machine.rank, None, machine.world):
            scores = measure_windows(model, tokens, machine, starts, length, new, token_bytes)
            places = torch.from_numpy(starts)[:, None] + torch.arange(length + 1)[-new:]
            sums.index_add_(0, groups[places.flatten()], scores)
            bar.update(min(len(scores) * machine.world, bar.total - bar.n))
    return machine.sum(sums)


def measure_windows(model, tokens, machine, starts, length, new, token_bytes):
    """What `measure` adds up, for each of the last `new` tokens of each window: nats, 1, bytes,
    whether it is the likeliest, whether among the five likeliest; (B new, 5) float64."""
    windows = torch.from_numpy(tokens.windows(starts, length + 1))
    with machine.autocast():
        logits = model.forward(windows[:, :-1].to(machine.device))[:, -new:]  # (B, new, V)
    targets = windows[:, -new:].flatten()
    nats, ranks = score(logits.flatten(0, 1), targets.to(machine.device))
    n_bytes = torch.zeros(len(targets)) if token_bytes is None else token_bytes[targets]
    columns = (nats, torch.ones(len(targets)), n_bytes, ranks == 0, ranks < 5)
    return torch.stack([column.double() for column in columns], dim=1)


def summary(sums):
    """The numbers of a row of sums: nats per token and what else is shown; None: unknown."""
    nats, count, n_bytes, right, among_5 = sums.tolist()
    return {'loss': nats / count, 'perplexity': (sums[0] / sums[1]).exp().item(),
            'bits_per_byte': nats / math.log(2) / n_bytes if n_bytes > 0 else None,
            'accuracy': right / count, 'top5_accuracy': among_5 / count, 'tokens': int(count)}
