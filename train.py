"""Train a GPT: token files in; checkpoints, a log and a loss curve out.

    python train.py
    python train.py config/shakespeare_char.py --max_seconds=60
    torchrun --standalone --nproc_per_node=8 train.py config/gpt2.py
"""

import dataclasses
import math
import signal
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import config
import script
from corpus import key, open_corpus, window_starts
from evaluation import measure, summary
from machine import open_machine, stop_signals
from model import GPT, GPTConfig
from optim import load_states, make_optimizers, param_groups
from run import (
    SHAPE,
    inherit,
    load,
    must_fit,
    open_folder,
    refuse_nan,
    save_run,
    write_log,
    write_sample,
)
from schedule import batch_at, check_batches, rate, sequences_after, time_limit
from script import UserError, progress_bar
from tokenizer import Tokenizer


@dataclass
class TrainConfig(GPTConfig):
    """What to train, on what, for how long."""
    dataset: str = 'stdlib'  # data/NAME/, or the recipe data/NAME.py that makes it
    out_dir: str | None = None  # for checkpoints, log.jsonl and loss.png; None: out/DATASET
    init_from: str | None = None  # start from the weights of this checkpoint, a folder or a file
    resume: bool = False  # go on from out_dir's ckpt.pt, or start where there is none
    seed: int = 1337  # decides the weights, the order of the data and the dropout
    device: str = 'auto'  # cpu, cuda, cuda:1, mps; auto: the fastest there is
    dtype: Literal['auto', 'float32', 'bfloat16', 'float16'] = 'auto'  # of the matrix products
    compile: bool | Literal['auto'] = 'auto'  # torch.compile; auto: on CUDA, where it works
    batch_size: int = 8  # sequences in one optimizer step, over all devices
    batch_size_start: int | None = None  # in the first step, rising to batch_size in multiples
    batch_ramp_tokens: int | None = None  # the tokens over which it rises
    micro_batch_size: int | None = None  # sequences in one forward pass of one device; None: all
    optimizer: Literal['adamw', 'muon'] = 'muon'  # for the blocks' matrices; AdamW for the rest
    learning_rate: float = 4e-3  # AdamW's peak
    muon_lr: float = 0.03  # Muon's peak, which follows the same schedule
    min_lr: float = 0.0  # where learning_rate ends, and in proportion muon_lr
    warmup_steps: int = 50  # steps in which the rate rises from 0
    warmup_tokens: int | None = None  # the same in tokens, instead of warmup_steps
    weight_decay: float = 0.1  # of matrices; norms and biases have none
    beta1: float = 0.9  # AdamW's memory of the gradient
    beta2: float = 0.99  # AdamW's memory of its square
    grad_clip: float = 1.0  # the longest gradient; 0: any length
    max_steps: int | None = None  # the length of the run, which the schedule follows
    max_seconds: float | None = None  # the length without max_steps; None: 150 then, else no limit
    eval_interval: int = 250  # steps between evaluations, each with a sample and a checkpoint
    eval_tokens: int | None = None  # evaluate on the first so many of val.bin; None: on all
    log_interval: int = 25  # steps between lines of progress
    wandb_project: str | None = None  # log to this project of Weights & Biases too


def main(argv):
    options, given = config.parse(TrainConfig, argv)
    options, state, resumed = starting_point(options, given)
    check(options)
    with open_machine(options) as machine:
        return train(options, state, resumed, machine)


# --- what to train -------------------------------------------------------------------------------

def starting_point(options, given):
    """(options, checkpoint or None, whether it is resumed): where --resume or --init_from start."""
    path = folder_of(options) / 'ckpt.pt'
    if options.resume and path.exists():
        state = load(path)
        if 'optimizers' not in state:
            raise UserError(f'{path} has no optimizers, like a best.pt: --init_from starts a new '
                            'run with its weights')
        fixed = [*SHAPE, 'dataset', 'seed', 'optimizer', 'batch_size', 'batch_size_start',
                 'batch_ramp_tokens']
        names = [name for name in vars(options) if name != 'out_dir']
        return inherit(options, given, state['config'], fixed, names), state, True
    if options.init_from is None:
        return options, None, False
    if options.init_from in ('scratch', 'resume'):
        raise UserError(f'init_from={options.init_from}: a run starts from scratch unless told '
                        'otherwise, and --resume=True goes on with one')
    state = load(options.init_from)
    largest = state['config']['block_size']
    if (given.get('block_size') or 0) > largest:
        raise UserError(f'block_size={options.block_size} is above the checkpoint\'s {largest}')
    fixed = [name for name in SHAPE if name != 'block_size']
    return inherit(options, given, state['config'], fixed, SHAPE), state, False


def folder_of(options):
    if options.out_dir is None:
        return config.ROOT / 'out' / options.dataset
    return Path(options.out_dir).expanduser()


def check(options):
    """UserError for numbers that no run can have."""
    least = {'eval_tokens': 2, 'learning_rate': 1e-30} | dict.fromkeys(
        ('batch_size', 'batch_size_start', 'batch_ramp_tokens', 'micro_batch_size',
         'eval_interval', 'log_interval'), 1) | dict.fromkeys(
        ('seed', 'max_steps', 'max_seconds', 'warmup_steps', 'warmup_tokens', 'muon_lr', 'min_lr',
         'weight_decay', 'beta1', 'beta2', 'grad_clip'), 0)
    most = {'seed': 2 ** 63 - 1, 'beta1': 0.9999999, 'beta2': 0.9999999}
    for name, lower in least.items():
        value, upper = getattr(options, name), most.get(name, math.inf)
        if value is not None and not lower <= value <= upper:
            limits = f'at least {lower}' if value < lower else f'at most {upper}'
            raise UserError(f'{name} must be {limits}, not {value}')
    check_batches(options)


def check_sizes(options, train_tokens, val_tokens, world):
    """UserError if a batch can't be dealt to the processes, or a split is too short."""
    if len(train_tokens) < 2 * options.block_size or len(val_tokens) < 2:
        raise UserError(f'{options.dataset} is too short for block_size={options.block_size}: it '
                        f'has {len(train_tokens):,} tokens for training, which needs two blocks, '
                        f'and {len(val_tokens):,} for validation, which needs 2')
    name = 'batch_size_start' if options.batch_size_start else 'batch_size'
    micro = options.micro_batch_size or 1
    if getattr(options, name) % (world * micro):
        raise UserError(f'{name}={getattr(options, name)} is not divisible by {world} (processes) '
                        f'x {micro} (micro_batch_size)')


def make_model(options, state, meta):
    """(model, options): the model on the CPU, with the weights of the checkpoint `state` if there
    is one, and the options with its shape resolved."""
    size = options.vocab_size or meta['vocab_size']
    must_fit(options.dataset, meta, state and state['tokenizer'], size)
    torch.manual_seed(options.seed)
    try:
        model = GPT(dataclasses.replace(options, vocab_size=size))
    except ValueError as error:
        raise UserError(str(error)) from None
    if state:
        if 'wpe.weight' in state['model']:  # init_from may shorten the context
            state['model']['wpe.weight'] = state['model']['wpe.weight'][:options.block_size]
        model.load_state_dict(state['model'])
    return model, model.config


# --- batches and samples -------------------------------------------------------------------------

def get_batch(tokens, first, count, options, device):
    """Inputs and targets, each (count, T), of the training windows from number `first` on."""
    T = options.block_size
    starts = window_starts(np.arange(first, first + count), len(tokens), T, options.seed)
    windows = tokens.windows(starts, T + 1)
    if device.type == 'cuda':
        windows = windows.pin_memory()
    windows = windows.to(device, non_blocking=True)
    return windows[:, :-1], windows[:, 1:]


def sample(model, tokenizer, seed):
    """200 tokens of the model's, as indented text, drawn with a randomness of their own."""
    device = model.wte.weight.device
    start = torch.tensor([[tokenizer.start]], device=device)
    generator = torch.Generator(device).manual_seed(seed)
    model.eval()
    tokens = model.generate(start, 200, 0.8, vocab_size=tokenizer.vocab_size, generator=generator)
    text = tokenizer.decode([token.item() for token in tokens])
    model.train()
    return textwrap.indent(text, '    ')


# --- the run -------------------------------------------------------------------------------------

def agree(seconds, stopping, machine):
    """Rank 0's clock, and whether any process was told to stop, without waiting for the GPU."""
    if machine.world > 1:
        flags = torch.tensor([0.0 if machine.rank else seconds, stopping], dtype=torch.float64)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        seconds, stopping = flags.tolist()
    return seconds, bool(stopping)


def restore(state, optimizers, scaler):
    """The progress that a checkpoint holds, whose moments go into the optimizers."""
    load_states(optimizers, state['optimizers'])
    if state['scaler'] and scaler.is_enabled():  # another dtype may have one or none
        scaler.load_state_dict(state['scaler'])
    names = ('step', 'sequences', 'seconds', 'best_loss', 'wandb')
    return {name: state.get(name) for name in names}


def summarize(pending, scaler, folder, machine):
    """The log's records of `pending` steps, whose losses and gradient norms are on the device; a
    loss becomes the processes' mean. A scaler has skipped steps whose norm is not finite."""
    values = torch.stack([record.pop('values') for record in pending]).cpu().double()  # (steps, 2)
    if machine.world > 1:
        dist.all_reduce(values)
    for record, (loss, norm) in zip(pending, (values / machine.world).tolist(), strict=True):
        if scaler.is_enabled() and not math.isfinite(norm):
            norm = None
        refuse_nan({'loss': loss, 'gradient norm': norm}, record, folder)
        record |= {'train_loss': loss, 'grad_norm': norm}
    return pending


def show(record, options, bar):
    """The progress of the run, in the bar or as a line."""
    step, seconds = record['step'], record['seconds']
    left = max(0, time_limit(options) - seconds)
    if options.max_steps is not None:
        total = sequences_after(options, options.max_steps) * options.block_size
        left = min(left, (total - record['tokens']) * seconds / record['tokens'])
    text = (f'step {step:,}  loss {record["train_loss"]:.4f}  lr {record["lr"]:.1e}  '
            f'{record["tokens_per_second"]:,} tokens/s  {int(left) // 60}:{int(left) % 60:02} left')
    if bar is None:
        print(text, flush=True)
    else:
        bar.n = step if options.max_steps is not None else min(int(seconds), bar.total)
        bar.set_description_str(text)


def train_step(runner, optimizers, scaler, tokens, options, machine, at, micro):
    """One optimizer step, in passes of `micro` sequences; returns its loss and gradient norm, (2,),
    still on the device."""
    micro_steps = batch_at(options, at['sequences']) // (machine.world * micro)
    total = torch.zeros((), device=machine.device)
    for i in range(micro_steps):
        first = at['sequences'] + (machine.rank * micro_steps + i) * micro
        x, y = get_batch(tokens, first, micro, options, machine.device)
        if options.dropout:
            torch.manual_seed(int(key(options.seed, at['step'], i, machine.rank)[0] >> 1))
        if machine.world > 1:
            runner.require_backward_grad_sync = i == micro_steps - 1
        with machine.autocast():
            loss = runner(x, y) / micro_steps
        scaler.scale(loss).backward()
        total += loss.detach()
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(runner.parameters(), options.grad_clip or math.inf)
    skipped = scaler.is_enabled() and not norm.isfinite()  # then by all optimizers
    for optimizer in optimizers:
        if not skipped:
            scaler.step(optimizer)
        optimizer.zero_grad()
    scaler.update()
    return torch.stack((total, norm))


def train(options, state, resumed, machine):
    """The run, from its first step or its checkpoint's to its end; returns the exit code."""
    train_tokens, val_tokens, meta = open_corpus(options.dataset)
    check_sizes(options, train_tokens, val_tokens, machine.world)
    spec = meta['tokenizer'] or state and state['tokenizer']
    tokenizer = Tokenizer(spec) if spec else None
    token_bytes = tokenizer and torch.tensor([len(token) for token in tokenizer.token_bytes])
    model, options = make_model(options, state, meta)
    optimizers = make_optimizers(model.to(machine.device), options)
    scaled = machine.dtype == torch.float16 and machine.device.type == 'cuda'
    scaler = torch.amp.GradScaler(machine.device.type, enabled=scaled)
    at = {'step': 0, 'sequences': 0, 'seconds': 0.0, 'best_loss': math.inf, 'wandb': None}
    if resumed:
        at = restore(state, optimizers, scaler)
        print(f'going on from step {at["step"]:,} of {folder_of(options)}')
    machine.must_agree(at['step'], 'step to go on from (out_dir must be a folder they share)')
    folder, limit = folder_of(options), time_limit(options)
    last_step = math.inf if options.max_steps is None else options.max_steps
    if at['step'] >= last_step or at['seconds'] >= limit:
        print(f'{folder} ended at step {at["step"]:,}, {at["seconds"]:.0f} s; to go on, raise '
              f'{"max_steps" if at["step"] >= last_step else "max_seconds"}')
        return 0
    tracker = machine.first_does(open_folder, folder, options, at['step'], at['wandb'])
    at['wandb'] = tracker.id if tracker else at['wandb']
    if machine.compiled:
        model.compile()
    runner = model
    if machine.world > 1:  # RoPE's table is the same in all processes and never changes
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ['rope'])
        runner = DistributedDataParallel(model)
    rise = f'{options.batch_size_start} to ' if options.batch_size_start else ''
    micro = options.micro_batch_size or options.batch_size // machine.world
    print(f'{sum(p.numel() for p in model.parameters()):,} parameters on {options.dataset} '
          f'({len(train_tokens):,} tokens), {rise}{options.batch_size} x {options.block_size} '
          f'tokens a step, {micro} sequences at once; {machine}', flush=True)

    pending, first, counted = [], at['step'], at['sequences']
    begin, logged = time.perf_counter() - at['seconds'], at['seconds']
    with stop_signals() as signals, progress_bar(
            machine.rank == 0, total=options.max_steps or limit,
            bar_format='{percentage:3.0f}% |{bar}| {desc}') as bar:
        say = bar.write if bar is not None else print
        while True:
            at['seconds'], stopping = agree(time.perf_counter() - begin, bool(signals), machine)
            step = at['step']
            done = step >= last_step or at['seconds'] >= limit
            evaluating = done or step > first and step % options.eval_interval == 0
            saving = evaluating or stopping
            if pending and (saving or step % options.log_interval == 0 or step == first + 1):
                records, pending = summarize(pending, scaler, folder, machine), []
                seconds = time.perf_counter() - begin - logged
                speed = round((at['sequences'] - counted) * options.block_size / seconds)
                for record in records:
                    record['tokens_per_second'] = speed
                show(records[-1], options, bar)
                best = False
                if evaluating:
                    sums = measure(model, val_tokens, machine, options.eval_tokens, token_bytes)
                    loss, bits = map(summary(sums[0]).get, ('loss', 'bits_per_byte'))
                    refuse_nan({'validation loss': loss}, records[-1], folder)
                    records[-1] |= {'val_loss': loss, 'bits_per_byte': bits}
                    best, at['best_loss'] = loss < at['best_loss'], min(loss, at['best_loss'])
                    if tokenizer:
                        text = machine.first_does(sample, model, tokenizer, options.seed + step)
                        machine.first_does(write_sample, folder, step, text)
                        say(text)
                    say(f'step {step:,}: validation loss {loss:.4f}'
                        + (f', {bits:.4f} bits per byte' if bits else ''))
                machine.first_does(write_log, folder, records, tracker)
                if saving:
                    machine.first_does(save_run, folder, best, optimizers, scaler, {
                        'model': model.state_dict(), **at, 'seconds': time.perf_counter() - begin,
                        'config': dataclasses.asdict(options), 'tokenizer': spec})
                logged, counted = time.perf_counter() - begin, at['sequences']
            if done or stopping:
                break
            factor = rate(options, step, at['sequences'], at['seconds'])
            for group in param_groups(optimizers):
                group['lr'] = group['peak_lr'] * factor
            size = batch_at(options, at['sequences'])
            values = train_step(runner, optimizers, scaler, train_tokens, options, machine, at,
                                options.micro_batch_size or size // machine.world)
            at |= {'step': step + 1, 'sequences': at['sequences'] + size}
            pending.append({'step': step + 1, 'tokens': at['sequences'] * options.block_size,
                            'lr': options.learning_rate * factor, 'values': values,
                            'seconds': time.perf_counter() - begin})
    farewell(folder, options, at, stopping and not done)
    return 128 + (signals or [signal.SIGTERM])[0] if stopping and not done else 0


def farewell(folder, options, at, stopped):
    """What became of the run, and what to do with it."""
    folder, here = script.short(folder), script.short(config.ROOT)
    if stopped or options.max_steps not in (None, at['step']):
        print(f'stopped by {"a signal" if stopped else "max_seconds"} after step {at["step"]:,}; '
              f'to go on: python {Path(here, "train.py")} --out_dir={folder} --resume=True')
    if at['best_loss'] < math.inf:
        print(f'best validation loss: {at["best_loss"]:.4f}, in {folder}/best.pt')
    picture = Path(folder, 'loss.png')
    print(f'the curve: {picture if picture.exists() else "pip install matplotlib"}; more samples:\n'
          f'python {Path(here, "sample.py")} --out_dir={folder}')


if __name__ == '__main__':
    script.run(main)
