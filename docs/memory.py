"""How much memory training takes on each device, computed: no weight is made, no step taken.

    python docs/memory.py --devices=8
    python docs/memory.py --sizes=gpt2 --optimizer=adamw  # a network of tools/bench.py

A device holds parameters, their gradients and moments, in float32, and what the forward pass keeps
for the backward pass, its products in bfloat16. `shard` divides the former among the devices.
"""

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from folio import cli  # first of all, for then an interrupt while torch is loaded is quiet

# isort: split
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import folio.options
from folio.optim import hidden_matrices
from model import GPT
from tools.bench import GPT2, SIZES, Size
from train import TrainConfig

HEAD = 128  # channels of a head
SHAPES = [(6, 384, 256, 65, 64), (12, 768, 1024, 50304, 4), (12, 768, 1024, 50304, 32),
          (24, 1024, 1024, 50304, 16), (36, 1280, 1024, 50304, 16), (24, 2048, 2048, 50304, 8),
          (32, 2560, 2048, 50304, 4), (32, 4096, 2048, 50304, 4), (32, 4096, 4096, 50304, 2)]


@dataclass
class MemoryConfig:
    """What to compute."""
    sizes: list[Size] = field(default_factory=list)  # of tools/bench.py, in place of the table's
    devices: Annotated[int, '>= 1'] = 8  # that share the parameters
    optimizer: Literal['adamw', 'muon'] = 'muon'  # whose moments they hold
    dtype: Literal['float32', 'bfloat16'] = 'bfloat16'  # of the matrix products


def main(argv):
    """Print the table."""
    options, _ = folio.options.parse(MemoryConfig, argv)
    print(f'| parameters | n_layer x n_embd | context | sequences at once | parameters, gradients, '
          f'moments, GB | activations, GB | in all, GB | `--recompute` | and `--shard`, '
          f'{options.devices} devices |\n|---|---|---|---|---|---|---|---|---|')
    configs = [TrainConfig(**GPT2 | SIZES[size]) for size in options.sizes] or [
        TrainConfig(n_layer=n_layer, n_embd=n_embd, block_size=block_size, vocab_size=vocab_size,
                    batch_size=sequences, n_head=max(1, n_embd // HEAD))
        for n_layer, n_embd, block_size, vocab_size, sequences in SHAPES]
    for config in configs:
        numbers, held, *totals = sizes(config, options)
        columns = [f'{number / 1e9:,.2f}' for number in (held, totals[0] - held, *totals)]
        print(f'| {numbers / 1e6:,.1f}M | {config.n_layer} x {config.n_embd} | '
              f'{config.block_size} | {config.batch_size} | {" | ".join(columns)} |')


def sizes(config, options):
    """(parameters, bytes of them with gradients and moments, bytes in all: plain, with recompute,
    with recompute and shard) of a model that passes batch_size sequences at once."""
    dtype = getattr(torch, options.dtype)
    with FakeTensorMode():
        network = GPT(config)
        once = GPT(dataclasses.replace(config, recompute=True))
    numbers = count(network.parameters())
    held = 8 * numbers + moments(network, options.optimizer)
    plain, outside = (kept(each, config, dtype) for each in (network, once))
    one = (plain - outside) / config.n_layer  # block, whose gradients take as much again
    plain, again = plain + one, outside + 2 * one
    block = 4 * count(network.blocks[0].parameters())
    rest = 4 * (numbers - count(network.blocks.parameters()))
    gathered = 2 * rest + 4 * block  # the head's, one block's and the next one's, with a gradient
    loss = 12 * min(2 ** 24, config.batch_size * config.block_size * config.vocab_size)
    loss += 12 * config.vocab_size * config.n_embd  # the head's gradient, of a part and of all
    return (numbers, held, held + plain + loss, held + again + loss,
            held / options.devices + gathered + again + loss)


def count(parameters):
    """How many numbers there are in them."""
    return sum(p.numel() for p in parameters)


def moments(network, optimizer):
    """The bytes of the moments: AdamW has two for each number, Muon one, and one for each row."""
    matrices = hidden_matrices(network).values() if optimizer == 'muon' else []
    muons = sum(p.numel() + len(p) for p in matrices)
    return 8 * (count(network.parameters()) - count(matrices)) + 4 * muons


def kept(network, config, dtype):
    """The bytes that a forward pass of batch_size sequences keeps, up to the head, beside the
    parameters: also their copies in `dtype`."""
    tensors = []
    with network.wte.weight.fake_mode, torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: tensors.append(tensor) or tensor, lambda tensor: tensor):
        idx = torch.zeros(config.batch_size, config.block_size, dtype=torch.int64)
        with torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
            network.hidden(idx)
    own = {p.untyped_storage()._cdata for p in network.parameters()}
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
                for tensor in tensors}
    return sum(size for name, size in storages.items() if name not in own)


if __name__ == '__main__':
    cli.run(main)
