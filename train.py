"""Train a GPT: token files in; checkpoints, a log and a loss curve out.

    python train.py
    python train.py config/shakespeare_char.py --max_seconds=60
    torchrun --standalone --nproc_per_node=8 train.py config/gpt2.py
"""

from folio import cli  # first of all, for then an interrupt while torch is loaded is quiet

# isort: split
import contextlib
import dataclasses
import inspect
import math
import os
import signal
import textwrap
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

import folio.options
from folio import checkpoint
from folio.cli import UserError, progress_bar
from folio.journal import Journal, tell_end, tell_progress, tell_start
from folio.machine import Machine, Signals, catch_signals, open_machine
from folio.optim import load_states, make_optimizers, param_groups
from folio.options import DataName, InPath, OutPath
from folio.shard import gathered, shard, whole_tensor
from folio.speed import peak_rate
from folio.tokenizer import Tokenizer, name_of
from model import GPT, SHAPE, GPTConfig, check_weights
from prepare import Tokens, open_corpus

GOLDEN = np.uint64(0x9e3779b97f4a7c15)  # SplitMix64's step


@dataclass
class TrainConfig(GPTConfig):
    """What to train, on what, for how long."""
    dataset: DataName = 'stdlib'  # data/NAME/, or the recipe data/NAME.py that makes it
    out_dir: OutPath | None = None  # for checkpoints, log.jsonl and loss.png; None: out/DATASET
    init_from: InPath | None = None  # start from the weights of this checkpoint, a folder or a file
    resume: bool = False  # go on from out_dir's ckpt.pt, or start where there is none
    seed: Annotated[int, '>= 0', '<= 9e18'] = 1337  # of weights, order, dropout
    device: str = 'auto'  # cpu, cuda, cuda:1, mps; auto: the fastest there is
    dtype: Literal['auto', 'float32', 'bfloat16', 'float16'] = 'auto'  # of the matrix products
    compile: bool | Literal['auto'] = 'auto'  # torch.compile; auto: on CUDA, or in a long run
    shard: bool = False  # share the parameters and moments out to all devices, by FSDP
    batch_size: Annotated[int, '>= 1'] = 8  # sequences in one optimizer step, over all devices
    batch_size_start: Annotated[int | None, '>= 1'] = None  # of the first step; rises in multiples
    batch_ramp_tokens: Annotated[int | None, '>= 1'] = None  # the tokens over which it rises
    micro_batch_size: Annotated[int | None, '>= 1'] = None  # in one pass of a device; None: all
    optimizer: Literal['adamw', 'muon'] = 'muon'  # for the blocks' matrices; AdamW for the rest
    learning_rate: Annotated[float, '> 0'] = 4e-3  # AdamW's peak
    muon_lr: Annotated[float, '>= 0'] = 0.03  # Muon's peak, which follows the same schedule
    min_lr: Annotated[float, '>= 0'] = 0.0  # where learning_rate ends, and in proportion muon_lr
    warmup_steps: Annotated[int, '>= 0'] = 50  # steps in which the rate rises from 0
    warmup_tokens: Annotated[int | None, '>= 0'] = None  # the same in tokens, in place of steps
    weight_decay: Annotated[float, '>= 0'] = 0.1  # of matrices; norms and biases have none
    beta1: Annotated[float, '>= 0', '< 1'] = 0.9  # AdamW's memory of the gradient
    beta2: Annotated[float, '>= 0', '< 1'] = 0.99  # AdamW's memory of its square
    grad_clip: Annotated[float, '>= 0'] = 1.0  # the longest gradient; 0: any length
    max_steps: Annotated[int | None, '>= 0'] = None  # the run's length, which the schedule follows
    max_seconds: Annotated[float | None, '>= 0'] = None  # the same in seconds; neither: 150
    max_bad_steps: Annotated[int, '>= 1'] = 10  # end after so many in a row that are not finite
    eval_interval: Annotated[int, '>= 1'] = 250  # steps between evaluations, samples, checkpoints
    eval_tokens: Annotated[int | None, '>= 2'] = None  # evaluate on the first of val.bin; None: all
    save_minutes: Annotated[float, '> 0'] = 15  # between checkpoints, beside the evaluations
    log_interval: Annotated[int, '>= 1'] = 25  # steps between lines of progress
    deterministic: bool = False  # on CUDA too: bit for bit the same each time, but slower
    wandb_project: str | None = None  # log to this project of Weights & Biases too, or of tracker
    tracker: str | None = None  # log to this module: wandb, trackio, or one with the same `init`


@dataclass
class Progress:
    """How far a run is; a checkpoint holds it."""
    step: int = 0  # completed optimizer steps
    sequences: int = 0  # windows trained on
    seconds: float = 0.0  # since the start, evaluations and earlier parts of the run included
    evaluated: int = 0  # the step of the latest evaluation
    best_loss: float = math.inf  # the lowest validation loss
    tracker: str | None = None  # the id or the name of its run in the tracker


@dataclass
class Run:
    """What the training loop works on."""
    options: TrainConfig
    machine: Machine
    folder: Path
    model: GPT
    optimizers: list
    scaler: torch.amp.GradScaler
    tokenizer: Tokenizer | None
    train_tokens: Tokens
    val_tokens: Tokens
    data: dict  # what tells its data from others, {split: [tokens, hash]}
    writer: checkpoint.Writer
    progress: Progress = field(default_factory=Progress)
    resumed: bool = False
    journal: Journal | None = None  # from its start on
    signals: Signals = field(default_factory=Signals)
    stopped_by: int = 0  # the signal that ends it, as all processes know it
    begin: float = 0.0  # when it began, by perf_counter
    records: list = field(default_factory=list)  # of the steps since the last report
    reported: tuple = (0.0, 0)  # the seconds and sequences of the last report
    saved: float = -math.inf  # the seconds of the last checkpoint; -inf: the next is overdue
    bad_steps: int = 0  # steps in a row whose loss or gradient was not finite


def main(argv):
    """Train what the options in argv say; returns the exit code."""
    if hasattr(signal, 'SIGUSR1'):  # which asks to save; until there is a run, it does nothing
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    with open_machine(TrainConfig) as machine, contextlib.ExitStack() as until_the_end:
        options, given = machine.together(folio.options.parse, TrainConfig, argv)
        machine.on_rank_0(until_the_end.enter_context, cli.locked(folder_of(options)))
        run = set_up(options, given, machine)
        run.signals = until_the_end.enter_context(catch_signals())
        until_the_end.enter_context(cli.lasting_output())
        return train(run)


# --- what to train -------------------------------------------------------------------------------

def set_up(options, given, machine):
    """The Run of the options, as far as its checkpoint came; UserError unless all processes train
    the same, on the same data, from the same step. given: the options that were typed."""
    options, state = machine.together(starting_point, options, given)
    sequences = options.micro_batch_size or options.batch_size // machine.world
    seconds = time_limit(options) if options.max_steps is None else 0
    machine.choose(options, given, sequences * options.block_size, options.n_embd, seconds)
    options = dataclasses.replace(options, compile=machine.compiled,
                                  dtype=str(machine.dtype).removeprefix('torch.'))
    run = machine.together(make_run, options, state, machine)
    machine.check_same({
        **vars(run.options), 'device': None, 'out_dir': None,  # these may differ
        **run.data, **vars(run.progress), 'torch': torch.__version__,
        'tokenizer': run.tokenizer and f'{name_of(run.tokenizer.spec)}, checksum '
                                       f'{zlib.crc32(str(run.tokenizer.spec).encode()):08x}'})
    if machine.sharded:
        run.model = shard(run.model, run.optimizers, machine.device)
    return run


def starting_point(options, given):
    """(options, the dict of the checkpoint that --resume or --init_from start from, or {})."""
    if (options.batch_size_start is None) != (options.batch_ramp_tokens is None):
        raise UserError('batch_size_start and batch_ramp_tokens need each other')
    folder = folder_of(options)
    if options.resume and can_resume(folder):
        return checkpoint.resume(options, given, folder, SHAPE)
    if (folder / 'ckpt.pt').exists() and not (folder / 'log.jsonl').exists():
        raise UserError(f'{folder} has a model that no run made; name another out_dir')
    if options.resume:
        print(f'there is no {cli.short(folder / "ckpt.pt")} to go on from: a new run starts')
    if options.init_from is None:
        return options, {}
    return checkpoint.start_from(options, given, folder, SHAPE)


def folder_of(options):
    """The folder of the run; one to go on with may also stand beside the scripts."""
    if options.out_dir is None:
        return (folio.options.ROOT / 'out' / Path(options.dataset).name).resolve()
    found = folio.options.find(options.out_dir)
    goes_on = options.resume and can_resume(found)
    return (found if goes_on else Path(os.path.expanduser(options.out_dir))).resolve()


def can_resume(folder):
    """Whether the folder has a run to go on with."""
    return any((folder / name).exists() for name in checkpoint.RESUMABLE)


def make_run(options, state, machine):
    """The Run of options that are chosen, from the checkpoint's dict `state`."""
    *tokens, meta = open_corpus(options.dataset, state.get('tokenizer'))
    check_sizes(options, *tokens, machine.world)
    options, tokenizer = fit_to_data(options, state, meta)
    model = make_model(options, state, machine)
    optimizers = make_optimizers(model, options, machine.dtype)
    scaled = machine.dtype == torch.float16 and machine.device.type == 'cuda'
    scaler = torch.amp.GradScaler(machine.device.type, enabled=scaled)
    train_data, val_data = (split.fingerprint() for split in tokens)
    run = Run(options, machine, folder_of(options), model, optimizers, scaler, tokenizer, *tokens,
              {'train': train_data, 'val': val_data}, checkpoint.Writer(keeps=machine.rank == 0))
    checkpoint.versions()  # as they are now
    if 'optimizers' in state:
        restore(run, state)
    return run


def check_sizes(options, train_tokens, val_tokens, world):
    """UserError if a batch can't rise or be dealt to the processes, or a split is too short."""
    if len(train_tokens) < 2 * options.block_size or len(val_tokens) < 2:
        raise UserError(f'{options.dataset} is too short for block_size={options.block_size}: it '
                        f'has {len(train_tokens):,} and {len(val_tokens):,} tokens, and needs two '
                        'blocks for training, and 2 tokens for validation')
    name = 'batch_size_start' if options.batch_size_start else 'batch_size'
    first, micro = getattr(options, name), options.micro_batch_size or 1
    if options.batch_size % first:
        raise UserError(f'batch_size={options.batch_size} is not a multiple of {name}={first}')
    if first % (world * micro):
        raise UserError(f'{name}={first} is not divisible by {world} (processes) x {micro} '
                        '(micro_batch_size)')


def fit_to_data(options, state, meta):
    """(options with all that is derived, the Tokenizer or None) for data with this meta.json, and a
    checkpoint's dict `state`; UserError where they don't fit."""
    spec = state.get('tokenizer') if state else meta['tokenizer']
    vocab_size = options.vocab_size or meta['vocab_size']
    checkpoint.check_vocabulary(options.dataset, meta, spec, vocab_size)
    spec = meta['tokenizer'] or spec
    with checkpoint.damaged(f'the tokenizer of {options.dataset}'):
        tokenizer = Tokenizer(spec) if spec else None
        if meta['tokenizer'] and tokenizer.vocab_size != meta['vocab_size']:
            raise ValueError(f'{tokenizer.vocab_size} ids, but meta.json has {meta["vocab_size"]}')
    try:
        return dataclasses.replace(options, vocab_size=vocab_size).resolved(), tokenizer
    except ValueError as error:
        raise UserError(str(error)) from None


def make_model(options, state, machine):
    """The model of resolved options, with the weights of the checkpoint's dict `state`, if any. One
    to be sharded is whole on rank 0's CPU only."""
    torch.manual_seed(options.seed)
    with torch.device('meta' if machine.sharded and machine.rank else 'cpu'):
        model = load_model(options, state['model']) if state else GPT(options)
    return model if machine.sharded else model.to(machine.device)


def load_model(options, weights):
    """The model of resolved options with the weights of a checkpoint, on the device meta without; a
    learned position table may be longer there."""
    with checkpoint.damaged('the checkpoint'):
        if 'wpe.weight' in weights:
            weights = weights | {'wpe.weight': weights['wpe.weight'][:options.block_size]}
        check_weights(weights, options)
        model = GPT(options)
        if not model.wte.weight.is_meta:
            model.load_state_dict(weights)
    return model


def restore(run, state):
    """Take the moments and the progress of a checkpoint; UserError if its data was another."""
    with checkpoint.damaged('the checkpoint'):
        for split, seen in (state.get('data') or {}).items():
            if seen != run.data[split]:
                raise UserError(f'the {split} split of {run.options.dataset} is not the one that '
                                'this run was trained on; prepare that one again, or start a new '
                                'run with --init_from')
        load_states(run.optimizers, state['optimizers'])
        if state['scaler']:
            run.scaler.load_state_dict(state['scaler'])
        saved = {'evaluated': state['step'], 'tracker': state.get('wandb')} | state  # older files
        run.progress = Progress(**{name: saved[name] for name in vars(run.progress)})
    run.resumed, run.saved = True, run.progress.seconds


# --- the order of the windows --------------------------------------------------------------------
# It is a function of the seed, not a state: window i is the same for any number of processes and
# after any interruption, and finding it takes neither memory nor time, however long the corpus.

def mix(x):
    """Scramble an array of uint64: the finalizer of SplitMix64 (Steele et al. 2014)."""
    x = (x ^ (x >> 30)) * np.uint64(0xbf58476d1ce4e5b9)
    x = (x ^ (x >> 27)) * np.uint64(0x94d049bb133111eb)
    return x ^ (x >> 31)


def random_key(*numbers):
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
    base = math.isqrt(n - 1) + 1
    bases = np.array([base, math.ceil(n / base)], np.uint64)
    round_keys = np.arange(1, 7, dtype=np.uint64) * GOLDEN
    place, outside = index.astype(np.uint64), np.ones(len(index), bool)
    while outside.any():
        left, right = np.divmod(place[outside], bases[1])
        for turn, round_key in enumerate(round_keys):
            scrambled = mix(right + keys[outside] + round_key)
            left, right = right, (left + scrambled % bases[turn % 2]) % bases[turn % 2]
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
    keys = random_key(seed, epoch)
    offset = (mix(keys) % np.uint64(block_size)).astype(np.int64)
    return offset + block_size * permute(place, n, keys)


def get_batch(tokens, first, count, options, device):
    """Inputs and targets, each (count, T), of the training windows from number `first` on."""
    T = options.block_size
    starts = window_starts(np.arange(first, first + count), len(tokens), T, options.seed)
    windows = torch.from_numpy(tokens.windows(starts, T + 1))
    if device.type == 'cuda':
        windows = windows.pin_memory()
    windows = windows.to(device, non_blocking=True)
    return windows[:, :-1], windows[:, 1:]


# --- the learning rate, and the size of the batch ------------------------------------------------

def time_limit(options):
    """The seconds after which the run stops."""
    if options.max_seconds is not None:
        return options.max_seconds
    return 150 if options.max_steps is None else math.inf


def is_done(options, progress):
    """Whether the run has come to its end."""
    by_steps = options.max_steps is not None and progress.step >= options.max_steps
    return by_steps or progress.seconds >= time_limit(options)


def ends_soon(options, progress):
    """Whether the clock will end the run, with an evaluation, within a quarter of eval_interval."""
    left = time_limit(options) - progress.seconds
    return left * progress.step < progress.seconds * options.eval_interval / 4


def rate_factor(options, progress):
    """The learning rate of the next step, as a share of its peak: a linear warmup, then a cosine
    (Loshchilov & Hutter 2017, arXiv:1608.03983) along max_steps, or else along max_seconds."""
    sequences, warmup = progress.sequences, sequences_after(options, options.warmup_steps)
    if options.warmup_tokens is not None:
        warmup = options.warmup_tokens / options.block_size
    if sequences < warmup:
        size = sequences_in_step(options, sequences)
        return (sequences + size) / (warmup + size)
    if options.max_steps is None:
        done = progress.seconds / time_limit(options)
    else:
        total = sequences_after(options, options.max_steps)
        done = (sequences - warmup) / max(1, total - warmup)
    floor = options.min_lr / options.learning_rate
    return floor + (1 - floor) * (1 + math.cos(math.pi * min(1, done))) / 2


def sequences_in_step(options, sequences):
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
    while steps > 0:
        size, count = sequences_in_step(options, sequences), steps
        if size < options.batch_size:  # the next size comes when the ramp has risen by this one
            slope = (options.batch_size - options.batch_size_start) * options.block_size
            end = math.ceil(size * options.batch_ramp_tokens / slope)
            count = min(steps, math.ceil((end - sequences) / size))
        sequences, steps = sequences + count * size, steps - count
    return sequences


# --- one step ------------------------------------------------------------------------------------

def train_step(runner, optimizers, scaler, tokens, options, machine, progress):
    """One optimizer step; returns its loss and the norm of its gradient, (2,), still on the device.

    runner: the model, or what distributes it. The step takes the next windows; each process passes
    through its share of them, micro_batch_size at a time.
    """
    size = sequences_in_step(options, progress.sequences) // machine.world
    micro = options.micro_batch_size or size
    first = progress.sequences + machine.rank * size
    total = torch.zeros((), device=machine.device)
    for i in range(size // micro):
        x, y = get_batch(tokens, first + i * micro, micro, options, machine.device)
        if options.dropout or options.attention_dropout:
            key = random_key(options.seed, progress.step, i, machine.rank)
            torch.manual_seed(int(key[0] >> 1))  # below 2^63
        if machine.world > 1:  # DDP's; FSDP adds up after each pass, and never holds all gradients
            runner.require_backward_grad_sync = i == size // micro - 1
        with machine.autocast():
            loss = runner(x, y) / (size // micro)
        total += loss.detach()
        scaler.scale(loss * (1 + 0 * loss.detach())).backward()  # if not finite, NaN on all ranks
    norm = clip_gradient(runner, optimizers, scaler, options.grad_clip)
    update_weights(optimizers, scaler, norm)
    return torch.stack((total, norm))


def clip_gradient(runner, optimizers, scaler, longest):
    """The norm of the gradient, which is then shortened to `longest` (0: to any length)."""
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    return whole_tensor(torch.nn.utils.clip_grad_norm_(runner.parameters(), longest or math.inf))


def update_weights(optimizers, scaler, norm):
    """A step of all optimizers, or, as the device decides, of none if the norm is not finite."""
    for optimizer in optimizers:
        optimizer.found_inf = 1 - norm.isfinite().float()
        optimizer.step()
        optimizer.zero_grad()
    scaler.update()


def flops_per_token(model):
    """The operations of forward and backward: 6 a weight in matrix products, and attention's
    (Chowdhery et al. 2022, arXiv:2204.02311, appendix B)."""
    config, layers = model.config, model.modules()
    weights = sum(x.weight.numel() for x in layers if isinstance(x, torch.nn.Linear))
    return 6 * weights + 12 * config.n_layer * config.n_head * config.head_size * config.block_size


# --- evaluation ----------------------------------------------------------------------------------

@torch.no_grad()
def validate(model, tokens, machine, limit=None, token_bytes=None, signals=None):
    """(nats per token, bits per byte or None) over the first `limit` tokens (None: all), each
    predicted from those before it in its window of block_size. token_bytes: the bytes of each id.
    A signal to stop ends it early. All processes make as many passes, as a sharded model needs.
    """
    signals = signals or Signals()
    sums = torch.zeros(2, dtype=torch.float64)  # nats, bytes
    predicted = min(len(tokens), limit or len(tokens)) - 1  # all but the first
    batches = validation_batches(predicted, model.config.block_size, model.config.vocab_size)
    model.eval()
    for first in range(0, len(batches), machine.world):
        if machine.maximum(signals.stop)[0]:
            break
        number = first + machine.rank
        starts, length = batches[number % len(batches)]
        nats, y = losses(model, tokens.windows(starts, length + 1), machine)
        n_bytes = 0 if token_bytes is None else token_bytes[y].sum()
        if number < len(batches):  # the last ones may only keep the others company
            sums += torch.tensor([nats.cpu().double().sum(), n_bytes])
    model.train()
    nats, n_bytes = machine.sum(sums).tolist()
    return nats / predicted, nats / math.log(2) / n_bytes if n_bytes > 0 else None


def losses(model, windows, machine):
    """(nats, ids), (N,) both, of what is predicted in the windows, an array (B, T + 1)."""
    windows = torch.from_numpy(windows)
    x, y = windows[:, :-1].to(machine.device), windows[:, 1:].flatten()
    with machine.autocast():
        logits = model.forward(x).flatten(0, 1).float()  # by the uncompiled model
    return F.cross_entropy(logits, y.to(machine.device), reduction='none'), y


def sequences_at_once(length, vocab_size):
    """How many windows of `length` a pass without a gradient takes, the same wherever a model is
    evaluated, so that products are rounded alike: 2^27 float32 logits are half a gigabyte."""
    return max(1, min(2 ** 13, 2 ** 27 // vocab_size) // length)


def validation_batches(predicted, block_size, vocab_size):
    """[(starts, length)] of the windows that one pass takes together."""
    size = sequences_at_once(block_size, vocab_size)
    whole = np.arange(predicted // block_size) * block_size
    batches = [(whole[i:i + size], block_size) for i in range(0, len(whole), size)]
    rest = predicted % block_size
    return batches + ([(np.array([predicted - rest]), rest)] if rest else [])


def sample(model, tokenizer, seed):
    """200 tokens of the model's, as indented text, drawn with a randomness of their own."""
    start = torch.tensor([[tokenizer.start]], device=model.wte.weight.device)
    model.eval()
    tokens = model.generate(start, 200, 0.8, seed=seed, vocab_size=tokenizer.vocab_size)
    text = tokenizer.decode([token.item() for token in tokens])
    model.train()
    return textwrap.indent(text, '    ')


def evaluate_run(run, say):
    """Validate the model and draw a sample; the numbers go into the last record. Returns whether
    the loss is the lowest; False, with nothing recorded, at a signal to stop."""
    progress, tokenizer, options = run.progress, run.tokenizer, run.options
    with gathered(run.model):
        loss, bits = validate(run.model, run.val_tokens, run.machine, options.eval_tokens,
                              tokenizer and torch.tensor(tokenizer.text_lengths), run.signals)
        agree(run)
        if run.stopped_by:
            return False
        if not math.isfinite(loss):
            end_with_last_good(run, f'step {progress.step}: the validation loss is {loss}')
        if tokenizer:
            text = sample(run.model, tokenizer, options.seed + progress.step)
            run.journal.sample(progress.step, text)
            say(text)
    tokens = progress.sequences * options.block_size
    run.records = run.records or [{'step': progress.step, 'tokens': tokens}]
    run.records[-1] |= {'val_loss': loss, 'bits_per_byte': bits}
    bits_text = f', {bits:.4f} bits per byte' if bits else ''
    say(f'step {progress.step:,}: validation loss {loss:.4f}{bits_text}')
    best, progress.best_loss = loss < progress.best_loss, min(loss, progress.best_loss)
    progress.evaluated = progress.step
    return best


def end_with_last_good(run, what):
    """UserError of all processes, which says what happened and where the last checkpoint is."""
    run.journal.log(run.records)
    run.writer.wait()
    run.machine.maximum(0)  # all end together, or torchrun kills one
    path = run.folder / 'ckpt.pt'
    raise UserError(f'{what}; the last good checkpoint: {path if path.exists() else "none"}')


# --- the run -------------------------------------------------------------------------------------

def train(run):
    """The run, from its first step or its checkpoint's to its end; returns the exit code."""
    options, progress = run.options, run.progress
    if run.resumed and is_done(options, progress) and progress.evaluated == progress.step:
        print(f'{cli.short(run.folder)} ended at step {progress.step:,}, {progress.seconds:.0f} s; '
              'to go on, raise max_steps or max_seconds')
        return 0
    start(run)
    try:
        training_loop(run)
    except Exception:
        run.writer.wait()  # what was saved before; an interrupt ends at once
        raise
    run.writer.wait()
    reason = 'a signal' if run.stopped_by else None
    if reason is None and options.max_steps not in (None, progress.step):
        reason = 'max_seconds'
    tell_end(run.folder, progress.step, progress.best_loss, reason)
    failed, = run.machine.maximum(len(run.writer.failed))  # all end together, or torchrun kills one
    if failed:
        raise UserError(f'the last checkpoint of {run.folder} could not be saved')
    return 128 + run.stopped_by if run.stopped_by else 0


def start(run):
    """Make the folder of the run, or open it again, and say what is trained."""
    machine, progress = run.machine, run.progress
    if run.resumed:
        print(f'going on from step {progress.step:,} of {cli.short(run.folder)}')
    else:
        machine.on_rank_0(checkpoint.move_old_run, run.folder)
    run.journal = machine.together(Journal, None if machine.rank else run.folder, run.options,
                                   progress.step, progress.tracker)
    progress.tracker = run.journal.tracked
    parameters = sum(p.numel() for p in run.model.parameters())
    tell_start(run.options, machine, parameters, len(run.train_tokens))


def training_loop(run):
    """Train until the run is done, or a signal to stop comes."""
    options, progress, machine = run.options, run.progress, run.machine
    runner = distribute(run.model, machine)
    run.begin = time.perf_counter() - progress.seconds
    run.reported = (progress.seconds, progress.sequences)
    with progress_bar(machine.rank == 0, bar_format='{percentage:3.0f}% |{bar}| {desc}',
                      total=options.max_steps or time_limit(options)) as bar:
        while True:
            agree(run)
            log_and_save(run, bar)
            if run.stopped_by or is_done(options, progress):
                return
            rate = rate_factor(options, progress)
            for group in param_groups(run.optimizers):
                group['lr'] = rate * group['peak_lr']
            values = train_step(runner, run.optimizers, run.scaler, run.train_tokens, options,
                                machine, progress)
            record_step(run, values)


def distribute(model, machine):
    """What computes the loss: the model, compiled if chosen, or DDP around it, which adds up the
    processes' gradients."""
    if machine.compiled:
        print('compiling: about half a minute on a CPU, a few seconds if it was done before')
        for module in model.blocks if machine.sharded else [model]:
            module.compile()
    if machine.world == 1 or machine.sharded:
        return model
    known = inspect.signature(DistributedDataParallel).parameters  # torch 2.13 renamed the option
    name = 'forward_sync_buffers' if 'forward_sync_buffers' in known else 'broadcast_buffers'
    return DistributedDataParallel(model, **{name: False})  # RoPE's table is the same everywhere


def agree(run):
    """Take rank 0's clock, and what any process was told, without waiting for the GPU."""
    seconds = 0.0 if run.machine.rank else seconds_since(run)
    asked, run.signals.save = run.signals.save, False
    run.progress.seconds, stop, asked = run.machine.maximum(seconds, run.signals.stop, asked)
    run.stopped_by = int(stop)
    run.saved = -math.inf if asked else run.saved


def record_step(run, values):
    """Count a step, whose loss and gradient norm `values` are still on the device."""
    progress = run.progress
    progress.sequences += sequences_in_step(run.options, progress.sequences)
    progress.step += 1
    run.records.append({'step': progress.step,
                        'tokens': progress.sequences * run.options.block_size,
                        'lr': param_groups(run.optimizers)[0]['lr'], 'values': values,
                        'seconds': seconds_since(run)})


def log_and_save(run, bar):
    """Log, evaluate and save, as far as it is time for that."""
    options, progress = run.options, run.progress
    done = is_done(options, progress)
    due = progress.step % options.eval_interval == 0 and not ends_soon(options, progress)
    unknown = options.init_from is not None and progress.best_loss == math.inf  # how good they were
    owed = (done or due) and progress.step > progress.evaluated
    evaluating = (owed or unknown) and not run.stopped_by
    late = progress.seconds - run.saved >= 60 * options.save_minutes
    saving = evaluating or done or late or run.stopped_by
    if not saving and progress.step > 1 and progress.step % options.log_interval:
        return
    collect(run, bar)
    best = evaluating and evaluate_run(run, bar.write)
    run.journal.log(run.records)
    if saving:
        save_run(run, best)
    run.journal.track(run.records)
    run.records, run.reported = [], (seconds_since(run), progress.sequences)


def collect(run, bar):
    """Complete the records of the steps since the last report, which waits for the device, and show
    the last one's numbers; a loss becomes the processes' mean, and what is not finite None."""
    if not run.records:
        return
    values = torch.stack([record.pop('values') for record in run.records]).cpu().double()
    means = run.machine.sum(values) / run.machine.world  # (steps, 2)
    seconds, sequences = run.reported
    tokens = (run.progress.sequences - sequences) * run.options.block_size
    speed = round(tokens / (seconds_since(run) - seconds))
    for record, numbers in zip(run.records, means.tolist(), strict=True):
        loss, norm = (number if math.isfinite(number) else None for number in numbers)
        record |= {'train_loss': loss, 'grad_norm': norm, 'tokens_per_second': speed}
    peak = peak_rate(run.machine.device)
    share = peak and speed * flops_per_token(run.model) / run.machine.world / peak
    tell_progress(run.records[-1], bar, run.options.max_steps, time_limit(run.options), share)
    counted = means[:, :1] if run.scaler.is_enabled() else means  # its own skips are none
    refuse_bad_steps(run, (~counted.isfinite()).any(dim=1).tolist(), bar.write)


def refuse_bad_steps(run, bad, say):
    """Say how many steps were skipped; UserError after max_bad_steps in a row. bad: which of those
    since the last report."""
    if any(bad):
        say(f'{sum(bad)} of {len(bad)} steps skipped: loss or gradient not finite')
    for record, is_bad in zip(run.records, bad, strict=True):
        run.bad_steps = run.bad_steps + 1 if is_bad else 0
        if run.bad_steps >= run.options.max_bad_steps:
            end_with_last_good(run, f'step {record["step"]}: loss or gradient not finite in '
                               f'{run.bad_steps} steps in a row')


def save_run(run, best):
    """Write ckpt.pt, if it is the best so far best.pt, and loss.png, in the background."""
    run.saved = run.progress.seconds
    state = {'model': run.model.state_dict(keep_vars=True), **vars(run.progress),
             'config': dataclasses.asdict(run.options),
             'tokenizer': run.tokenizer and run.tokenizer.spec,
             'versions': checkpoint.versions(), 'data': run.data}
    states = {run.folder / 'best.pt': state} if best else {}
    states[run.folder / 'ckpt.pt'] = state | {
        'optimizers': [optimizer.state_dict() for optimizer in run.optimizers],
        'scaler': run.scaler.state_dict()}
    run.writer.save(states, run.journal.draw)


def seconds_since(run):
    """The seconds since the run began, earlier parts of a resumed run included."""
    return time.perf_counter() - run.begin


if __name__ == '__main__':
    cli.run(main)
