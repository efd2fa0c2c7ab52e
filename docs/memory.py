"""How much memory training takes on each device, computed: no weight is made, no step taken.

    python docs/memory.py --devices=8

A device holds parameters, their gradients and moments, in float32, and what the forward pass keeps
for the backward pass, its products in bfloat16. `shard` divides the former among the devices.
"""

import dataclasses
import sys
from dataclasses import dataclass
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
from train import TrainConfig

HEAD = 128  # channels of a head
SHAPES = [(6, 384, 256, 65, 64), (12, 768, 1024, 50304, 4), (12, 768, 1024, 50304, 32),
          (24, 1024, 1024, 50304, 16), (36, 1280, 1024, 50304, 16), (24, 2048, 2048, 50304, 8),
          (32, 2560, 2048, 50304, 4), (32, 4096, 2048, 50304, 4), (32, 4096, 4096, 50304, 2)]


@dataclass
class MemoryConfig:
    """What to compute."""
    devices: Annotated[int, '>= 1'] = 8  # that share the parameters
    optimizer: Literal['adamw', 'muon'] = 'muon'  # whose moments they hold
    dtype: Literal['float32', 'bfloat16'] = 'bfloat16'  # of the matrix products


def main(argv):
    """Print the table."""
    options, _ = folio.options.parse(MemoryConfig, argv)
    print(f'| parameters | n_layer x n_embd | context | sequences at once | parameters, gradients, '
          f'moments, GB | activations, GB | in all, GB | `--recompute` | and `--shard`, '
          f'{options.devices} devices |\n|---|---|---|---|---|---|---|---|---|')
    for n_layer, n_embd, block_size, vocab_size, micro in SHAPES:
        config = TrainConfig(n_layer=n_layer, n_embd=n_embd, block_size=block_size,
                             vocab_size=vocab_size, n_head=max(1, n_embd // HEAD))
        numbers, held, *totals = sizes(config, micro, options)
        columns = [f'{number / 1e9:,.2f}' for number in (held, totals[0] - held, *totals)]
        print(f'| {numbers / 1e6:,.1f}M | {n_layer} x {n_embd} | {block_size} | {micro} | '
              f'{" | ".join(columns)} |')


def sizes(config, micro, options):
    """(parameters, bytes of them with gradients and moments, bytes in all: plain, with recompute,
    with recompute and shard) of a model that passes `micro` sequences at once."""
    dtype = getattr(torch, options.dtype)
    with FakeTensorMode():
        network = GPT(config)
        once = GPT(dataclasses.replace(config, recompute=True))
    numbers = count(network.parameters())
    held = 8 * numbers + moments(network, options.optimizer)
    plain, outside = (kept(each, micro, dtype) for each in (network, once))
    inputs = config.n_layer * 4 * micro * config.block_size * config.n_embd
    again = outside + inputs + (plain - outside) / config.n_layer  # one block at a time
    block = 4 * count(network.blocks[0].parameters())
    rest = 4 * (numbers - count(network.blocks.parameters()))
    gathered = 2 * rest + 4 * block  # the head's, one block's and the next one's, with a gradient
    loss = 12 * min(2 ** 25, micro * config.block_size * config.vocab_size)  # logits, a part
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


def kept(network, micro, dtype):
    """The bytes that a forward pass of `micro` sequences keeps, beside the parameters."""
    tensors = []
    with network.wte.weight.fake_mode, torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: tensors.append(tensor) or tensor, lambda tensor: tensor):
        idx = torch.zeros(micro, network.config.block_size, dtype=torch.int64)
        with torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
            network(idx, idx)
    own = {p.untyped_storage()._cdata for p in network.parameters()}
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
                for tensor in tensors}
    return sum(size for name, size in storages.items() if name not in own)


if __name__ == '__main__':
    cli.run(main)
