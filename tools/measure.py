"""How well a model predicts the tokens of a corpus: what train.py and evaluate.py measure.

    numbers = summary(measure(model, tokens, machine)[0])
    numbers['loss'], numbers['accuracy']

Each process takes its share of the windows; the sums over all of them are the same for any number.
"""

import itertools
import math

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

import config
from script import UserError


def sequences_at_once(length, vocab_size):
    """How many windows of `length` one pass takes. The same wherever a model is evaluated, so that
    the same products are rounded in the same way; 2^27 float32 logits take half a gigabyte."""
    return max(1, min(2 ** 13, 2 ** 27 // vocab_size) // length)


def spans(last, context, stride):
    """(start, length, new) of the windows over `last` predictions: the `new` at the end of each are
    those that the window before did not make."""
    end = 0
    for start in itertools.count(0, stride):
        before, end = end, min(start + context, last)
        yield start, end - start, end - before
        if end == last:
            return


def batches(last, context, stride, vocab_size):
    """(starts, length, new) of windows that one pass takes together."""
    size = sequences_at_once(context, vocab_size)
    for (length, new), group in itertools.groupby(spans(last, context, stride), lambda s: s[1:]):
        while starts := [start for start, _, _ in itertools.islice(group, size)]:
            yield np.array(starts), length, new


def score(logits, targets):
    """(nats, ranks) on the CPU for logits (N, V) and targets (N,): minus the log-probability of
    each target, and how many ids come before it: of equal logits the lower id does, and of logits
    that are not numbers all."""
    logits, ids = logits.float(), torch.arange(logits.size(-1), device=logits.device)
    nats = F.cross_entropy(logits, targets, reduction='none')
    own, targets = logits.gather(-1, targets[:, None]), targets[:, None]
    behind = (logits < own) | (logits == own) & (ids >= targets)
    return nats.cpu().double(), (~behind).sum(dim=-1).cpu()


@torch.no_grad()
def measure(model, tokens, machine, limit=None, token_bytes=None, context=None, stride=None,
            groups=None, bar=None):
    """Sums over the first `limit` tokens (None: all), for `summary`: a row for each group, (G, 5).

    They are cut into windows of `context` tokens (None: the model's) every `stride` tokens (None:
    context), the last one shorter. token_bytes: the length of each id's bytes, (V,). groups: the
    number of each token's group, (N,); None: all are one. bar: a progress bar in tokens, or None.
    """
    context = context or model.config.block_size
    last = min(len(tokens), limit or len(tokens)) - 1  # so many tokens have one before them
    sums = torch.zeros(1 if groups is None else int(groups.max()) + 1, 5, dtype=torch.float64)
    training = model.training
    model.eval()
    parts = batches(last, context, stride or context, model.config.vocab_size)
    for starts, length, new in itertools.islice(parts, machine.rank, None, machine.world):
        windows = tokens.windows(starts, length + 1)
        with machine.autocast():
            logits = model.forward(windows[:, :-1].to(machine.device))[:, -new:]  # (B, new, V)
        y = windows[:, -new:].reshape(-1)
        nats, ranks = score(logits.flatten(0, 1), y.to(machine.device))
        n_bytes = torch.zeros(len(y)) if token_bytes is None else token_bytes[y]
        columns = (nats, torch.ones(len(y)), n_bytes, ranks == 0, ranks < 5)
        places = torch.from_numpy(starts)[:, None] + torch.arange(length + 1 - new, length + 1)
        rows = torch.zeros_like(y) if groups is None else groups[places.flatten()]
        sums.index_add_(0, rows, torch.stack([column.double() for column in columns], dim=1))
        if bar is not None:
            bar.update(min(len(y) * machine.world, bar.total - bar.n))
    model.train(training)
    if machine.world > 1:
        dist.all_reduce(sums)
    return sums


def summary(sums):
    """The numbers of a row of sums: nats per token and what else is shown; None: unknown."""
    nats, count, n_bytes, right, among_5 = sums.tolist()
    loss = nats / count
    return {'loss': loss, 'perplexity': perplexity(loss),
            'bits_per_byte': nats / math.log(2) / n_bytes if n_bytes else None,
            'accuracy': right / count, 'top5_accuracy': among_5 / count, 'tokens': int(count)}


def perplexity(nats):
    return math.inf if nats > 700 else math.exp(nats)


def read_text(path):
    """The text of a file, its newlines as they are; UserError if it can't be read."""
    try:
        return config.find(path).read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, 'strerror', None) or error  # without the path
        raise UserError(f'{path}: {reason}') from None
