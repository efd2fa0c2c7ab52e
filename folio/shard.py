"""A model that no device holds whole: each process has some rows of every parameter, and of its
gradient and moments (Rajbhandari et al. 2019, arXiv:1910.02054). PyTorch's FSDP gathers the weights
of a block when it is the block's turn.

    model = shard(model, optimizers, torch.device('cuda:0'))
    loss = model(idx, targets)
    with gathered(model):
        logits = model.lm_head(model.hidden(idx))
"""

import contextlib

import torch
import torch.distributed as dist


def shard(whole, optimizers, device):
    """The model `whole` with its rows dealt to the processes; the optimizers, whose moments are
    dealt too, then hold that one. Rank 0 has the numbers, on the CPU; elsewhere `whole` is on the
    device `meta`, which has shapes only."""
    from torch.distributed.fsdp import fully_shard
    mesh = dist.init_device_mesh(device.type, (dist.get_world_size(),))
    with torch.device('meta'):
        model = type(whole)(whole.config)
    for module in (*model.blocks, model):
        fully_shard(module, mesh=mesh)
    model.to_empty(device=device)
    new = dict(zip(whole.parameters(), model.parameters(), strict=True))
    for theirs, ours in new.items():
        ours.detach().copy_(deal(theirs, mesh))
    for theirs, ours in zip(whole.buffers(), model.buffers(), strict=True):
        ours.copy_(deal(theirs, mesh, rows=False))
    replace_parameters(optimizers, new, mesh)
    with torch.no_grad():  # FSDP takes what passes first for the whole, and a block may otherwise
        model(torch.zeros(1, 1, dtype=torch.int64, device=device))
    model.reshard()
    return model


def replace_parameters(optimizers, new, mesh):
    """Have the optimizers hold other parameters, {old: new}; their moments are dealt."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group['params'] = [new[p] for p in group['params']]
        for p, moments in list(optimizer.state.items()):
            optimizer.state[new[p]] = {name: deal(value, mesh, rows=value.dim() > 0)
                                       for name, value in moments.items()}
            del optimizer.state[p]


def deal(tensor, mesh, rows=True, owner=0):
    """A tensor that the process `owner` has, as a DTensor whose rows the processes share, or if not
    `rows` the same tensor everywhere. The others give one of its shape."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    if dist.get_rank() != owner:
        tensor = torch.empty(tensor.shape, dtype=tensor.dtype, device=mesh.device_type)
    placement = Shard(0) if rows else Replicate()
    dealt = distribute_tensor(tensor.detach(), mesh, [placement], src_data_rank=owner)
    return dealt if rows else dealt.to_local()


def is_sharded(tensor):
    """Whether the processes share the rows of a tensor."""
    return hasattr(tensor, 'full_tensor')


def whole_tensor(tensor):
    """A tensor without its gradient; of one whose rows are shared all of them, by all processes."""
    tensor = tensor.detach()
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def gathered_at_once(parameters):
    """How many parameters to gather at a time: one for each process, or all if none is sharded."""
    return dist.get_world_size() if is_sharded(parameters[0]) else len(parameters)


def gather(tensors, number):
    """Sharded tensors as whole ones on the process that is their owner, the one of this number, and
    an empty list on the others; tensors that are not sharded as they are."""
    whole = [whole_tensor(tensor) for tensor in tensors]
    mine = not is_sharded(tensors[0]) or dist.get_rank() == number
    return whole if mine else []


def scatter(whole, tensors, number):
    """Put what `gather` gave the owner, and it changed, back into the sharded tensors."""
    for theirs, ours in zip(whole or tensors, tensors, strict=True):
        if is_sharded(ours):
            ours.copy_(deal(theirs, ours.device_mesh, owner=number))


@contextlib.contextmanager
def gathered(model):
    """A context in which the methods of a sharded model can be called, by all processes, as those
    of any other: its blocks gather their weights themselves, all other weights are gathered here.
    What was compiled is not used."""
    if hasattr(model, 'unshard'):
        model.unshard()
        with torch.compiler.set_stance('force_eager'):
            yield
        model.reshard()
    else:
        yield
