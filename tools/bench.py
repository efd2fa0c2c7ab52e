"""Speed and memory of training, side by side.

    python tools/bench.py
    python tools/bench.py --sizes=nanogpt_cpu --against=../nanoGPT --rounds=20

Each contender is a process with a memory of its own. They take their steps in turns, one at a time,
so that a noisy machine is noisy for all; what is printed are medians.
"""

import contextlib
import functools
import importlib.util
import io
import statistics
import sys
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from folio import cli  # first of all, for then an interrupt while torch is loaded is quiet

# isort: split
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.benchmark import Timer

import folio.options
import model
import train
from folio.cli import UserError, first_line, progress_bar
from folio.machine import Machine, keep_memory
from folio.optim import make_optimizers
from folio.options import InPath
from tools.measure import TextTokens

GPT2 = {'position': 'learned', 'norm': 'layernorm', 'norm_weight': True, 'mlp': 'gelu_erf',
        'qk_norm': False, 'bias': False, 'tied': True, 'token_shift': False}  # nanoGPT's defaults
SIZES = {
    'nanogpt_cpu': {'n_layer': 4, 'n_head': 4, 'n_embd': 128, 'block_size': 64, 'vocab_size': 65,
                    'batch_size': 12},
    'nanogpt_10m': {'n_layer': 6, 'n_head': 6, 'n_embd': 384, 'block_size': 256, 'vocab_size': 65,
                    'batch_size': 64, 'dropout': 0.2},
    'gpt2': {'n_layer': 12, 'n_head': 12, 'n_embd': 768, 'block_size': 1024, 'vocab_size': 50304,
             'batch_size': 4},
}
FORMATS = {f'{dtype} {name}': {'dtype': dtype, 'compile': name == 'compiled'}
           for dtype in ('float32', 'bfloat16') for name in ('eager', 'compiled')}
OURS = FORMATS | {'Muon': {'optimizer': 'muon'},  # these and the others in the format of --dtype
                  'Muon compiled': {'optimizer': 'muon', 'compile': True},
                  'recompute': {'recompute': True},
                  'explicit': {}, 'sdpa': {}, 'nn.TransformerEncoder': {}}  # ways of attention
Size, Way = Literal[tuple(SIZES)], Literal[tuple(OURS)]


@dataclass
class BenchConfig:
    """What to measure."""
    sizes: list[Size] = field(default_factory=lambda: ['nanogpt_cpu'])  # of the model
    ours: list[Way] = field(default_factory=lambda: list(OURS))  # to train it
    against: InPath | None = None  # a checkout of nanoGPT, whose model.py is measured too
    rounds: Annotated[int, '>= 1'] = 10  # steps of each contender
    device: str = 'auto'  # cpu, cuda, cuda:1, mps; auto: the fastest there is
    dtype: Literal['auto', 'float32', 'bfloat16'] = 'auto'  # ours; nanoGPT's is float32 on a CPU


def main(argv):
    """Print a table for each size."""
    options, given = folio.options.parse(BenchConfig, argv)
    if options.against and not (folio.options.find(options.against) / 'model.py').is_file():
        raise UserError(f'--against={options.against}: there is no model.py')
    for size in options.sizes:
        compare_steps(size, options, given)


def compare_steps(size, options, given):
    """Print the table of one size."""
    shape, machine = SIZES[size], Machine()
    tokens = shape['batch_size'] * shape['block_size']
    machine.choose(options, given, tokens, shape['n_embd'])
    names = options.ours + (['nanoGPT'] if options.against else [])
    seconds, memory = take_turns(names, size, options, machine)
    rate = matrix_rate(tokens, shape['n_embd'], machine)
    with torch.device('meta'):
        network = model.GPT(train.TrainConfig(**GPT2 | shape))
    work = tokens * train.flops_per_token(network) / rate  # seconds, at the products' rate
    print(f'\n### {size}: {shape["batch_size"]} x {shape["block_size"]} tokens a step\n\n'
          f'{machine.device}, {machine.dtype}, {torch.get_num_threads()} threads, torch '
          f'{torch.__version__}; matrix products {rate / 1e9:,.0f} GFLOP/s\n')
    print("| | tokens/s | ms a step | of the products' rate | peak memory, GB | times nanoGPT |")
    print('|---|---|---|---|---|---|')
    for name in names:
        ratio = f'{seconds["nanoGPT"] / seconds[name]:.2f}' if options.against else ''
        print(f'| {name} | {tokens / seconds[name]:,.0f} | {1000 * seconds[name]:.1f} | '
              f'{work / seconds[name]:.0%} | {memory[name] / 1e9:.2f} | {ratio} |')
    best = min(seconds.keys() & FORMATS.keys(), key=seconds.get, default=None)
    if best:
        print(f'\nfastest on this machine: {best}')


def take_turns(names, size, options, machine):
    """({name: median seconds a step}, {name: peak bytes}) of the contenders."""
    times, memory = defaultdict(list), {}
    with contextlib.ExitStack() as stack, progress_bar(
            total=len(names) * options.rounds, desc=size) as bar:
        pools = {name: stack.enter_context(ProcessPoolExecutor(1, get_context('spawn')))
                 for name in names}
        for name in names * options.rounds:
            step = pools[name].submit(take_step, name, size, machine.device, machine.dtype,
                                      options.against)
            try:
                seconds, memory[name] = step.result()
            except Exception as error:  # whatever a contender raises, or how it ends
                raise UserError(f'{size}: {name} failed: {first_line(error)}') from None
            times[name].append(seconds)
            bar.update()
    return {name: statistics.median(times[name]) for name in names}, memory


def take_step(name, size, device, dtype, against):
    """(seconds, peak bytes) of a step, in the contender's process."""
    step = make_step(name, size, device, dtype, against)
    finish(device)
    start = time.perf_counter()
    step()
    finish(device)
    return time.perf_counter() - start, peak_bytes(device)


def finish(device):
    """Wait until a GPU has done what it was asked."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


@functools.cache  # one a process
def make_step(name, size, device, dtype, against):
    """The function that takes a contender's step, after a few to warm up."""
    shape = SIZES[size]
    tokens = TextTokens(np.random.default_rng(0).integers(0, shape['vocab_size'], 1 << 20))
    if name == 'nanoGPT':
        step = nanogpt_step(shape, folio.options.find(against), tokens, device)
    else:
        keep_memory()
        step = our_step(name, shape, tokens, device, dtype)
    for _ in range(3):
        step()
    return step


def peak_bytes(device):
    """The most memory that this process has held: the GPU's, or else the machine's."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def our_step(name, shape, tokens, device, dtype):
    """A step of train.py's, with nanoGPT's network."""
    options = train.TrainConfig(**GPT2 | shape | {'optimizer': 'adamw'} | OURS.get(name, {}))
    dtype = dtype if options.dtype == 'auto' else getattr(torch, options.dtype)
    if name in ATTENTION:
        model.attend = ATTENTION[name]
    network = model.GPT(options)
    if name == 'nn.TransformerEncoder':
        network.blocks = nn.ModuleList([Encoder(options)])
    network.to(device)
    if options.compile is True:
        network.compile()
    machine, progress = Machine(device, dtype), train.Progress()
    optimizers = make_optimizers(network, options, dtype)
    scaler = torch.amp.GradScaler(device.type, enabled=False)

    def step():
        train.train_step(network, optimizers, scaler, tokens, options, machine, progress)
        progress.step += 1
        progress.sequences += options.batch_size
    return step


def sdpa(q, k, v, dropout):
    """torch's own attention, (B, H, T, D), whichever is its fastest."""
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)


ATTENTION = {'explicit': model.attend_explicitly, 'sdpa': sdpa}


class Encoder(nn.Module):
    """torch's own encoder with a causal mask, in the place of all blocks."""

    def __init__(self, options):
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            options.n_embd, options.n_head, 4 * options.n_embd, options.dropout, activation='gelu',
            batch_first=True, norm_first=True, bias=options.bias)
        self.encoder = nn.TransformerEncoder(layer, options.n_layer, enable_nested_tensor=False)

    def forward(self, x, rope, cache):
        mask = nn.Transformer.generate_square_subsequent_mask(x.size(1), x.device, x.dtype)
        return self.encoder(x, mask, is_causal=True)


def nanogpt_step(shape, path, tokens, device):
    """A step of nanoGPT's train.py with its model.py, in the formats it takes by default."""
    network, optimizer = load_nanogpt(shape, path, device)
    T, on_gpu = shape['block_size'], device.type == 'cuda'
    runner = torch.compile(network) if on_gpu else network
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=on_gpu)

    def step():
        starts = torch.randint(len(tokens) - T, (shape['batch_size'],)).tolist()
        windows = torch.from_numpy(tokens.windows(starts, T + 1))
        x, y = windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
        if on_gpu:
            x, y = (z.pin_memory().to(device, non_blocking=True) for z in (x, y))
        with autocast:
            _, loss = runner(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return step


def load_nanogpt(shape, path, device):
    """(network, optimizer) of the model.py in the folder `path`, which prints as it makes them."""
    spec = importlib.util.spec_from_file_location('nanogpt', Path(path, 'model.py'))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    fields = {name: value for name, value in shape.items() if name != 'batch_size'}
    with contextlib.redirect_stdout(io.StringIO()):
        network = module.GPT(module.GPTConfig(**{'dropout': 0.0, 'bias': False} | fields))
        network.to(device)
        return network, network.configure_optimizers(0.1, 1e-3, (0.9, 0.99), device.type)


def matrix_rate(tokens, n_embd, machine):
    """FLOP/s of the MLP's matrix product at this size, the fastest of a second's."""
    x, w = (torch.randn(shape, device=machine.device, dtype=machine.dtype)
            for shape in ((tokens, n_embd), (n_embd, 4 * n_embd)))
    timer = Timer('x @ w', globals={'x': x, 'w': w}, num_threads=torch.get_num_threads())
    return 8 * tokens * n_embd ** 2 / min(timer.blocked_autorange(min_run_time=1).times)


if __name__ == '__main__':
    cli.run(main)
