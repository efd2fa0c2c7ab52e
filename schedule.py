"""When what: the learning rate, and the size of the batch, of each step of a run.

The batch is a function of the sequences seen so far, and so is the rate of a run whose length is in
steps: nothing of it is saved in a checkpoint, and a resumed run goes on exactly.
"""

import math

from script import UserError


def time_limit(options):
    """The seconds after which the run stops."""
    if options.max_seconds is not None:
        return options.max_seconds
    return 150 if options.max_steps is None else math.inf


def check_batches(options):
    """UserError unless the batch can rise from batch_size_start to batch_size."""
    start, ramp = options.batch_size_start, options.batch_ramp_tokens
    if (start is None) != (ramp is None):
        raise UserError('batch_size_start and batch_ramp_tokens need each other')
    if start and options.batch_size % start:
        raise UserError(f'batch_size={options.batch_size} is not a multiple of '
                        f'batch_size_start={start}')


def batch_at(options, sequences):
    """How many sequences the step takes that comes after `sequences`: over batch_ramp_tokens it
    rises linearly, in multiples of batch_size_start (Brown et al. 2020, appendix B)."""
    start, most = options.batch_size_start, options.batch_size
    if start is None or sequences * options.block_size >= options.batch_ramp_tokens:
        return most
    rise = (most - start) * sequences * options.block_size // options.batch_ramp_tokens
    return start + rise - rise % start


def sequences_after(options, steps):
    """How many sequences `steps` steps take from the start of the run."""
    sequences = 0
    while steps:
        size = batch_at(options, sequences)
        count = steps
        if size < options.batch_size:  # the next size comes when the ramp has risen by this one
            slope = (options.batch_size - options.batch_size_start) * options.block_size
            until = -(-size * options.batch_ramp_tokens // slope)
            count = min(steps, -(-(until - sequences) // size))
        sequences, steps = sequences + count * size, steps - count
    return sequences


def rate(options, step, sequences, seconds):
    """The learning rate after so many steps, sequences and seconds, as a share of its peak: a
    linear warmup, along warmup_tokens or warmup_steps, then a cosine (Loshchilov & Hutter 2017,
    arXiv:1608.03983) along the sequences of max_steps, or along max_seconds."""
    if options.warmup_tokens is None:
        share = (step + 1) / (options.warmup_steps + 1)
        warmup = sequences_after(options, options.warmup_steps)
    else:
        seen = sequences + batch_at(options, sequences)  # with this step's
        share = seen * options.block_size / max(1, options.warmup_tokens)
        warmup = options.warmup_tokens / options.block_size
    if share < 1:
        return share
    if options.max_steps is None:
        progress = seconds / time_limit(options)
    else:
        total = sequences_after(options, options.max_steps)
        progress = max(0, sequences - warmup) / max(1, total - warmup)
    floor = options.min_lr / options.learning_rate
    return floor + (1 - floor) * (1 + math.cos(math.pi * min(1, progress))) / 2
