"""The machine a script runs on: device, number format, compiler, other processes, signals."""

import contextlib
import ctypes
import gc
import os
import re
import signal
from dataclasses import dataclass

import torch
import torch.distributed as dist

from folio.cli import UserError, first_line


@dataclass
class Machine:
    """What was chosen, and which of how many processes this is."""
    device: torch.device
    dtype: torch.dtype = torch.float32
    compiled: bool = False
    rank: int = 0
    world: int = 1

    def autocast(self):
        """A context in which matrix products are made in `dtype`."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def sum(self, tensor):
        """Add up a CPU tensor over the processes, in place; returns it."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def maximum(self, *numbers):
        """The largest of each number over the processes, a list of floats."""
        values = torch.tensor(numbers, dtype=torch.float64)
        if self.world > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return values.tolist()

    def on_rank_0(self, work, *arguments):
        """Rank 0's work(*arguments), elsewhere None; a UserError or OSError in it ends all."""
        result = error = None
        if self.rank == 0:
            try:
                result = work(*arguments)
            except (UserError, OSError) as caught:
                error = caught
        if self.sum(torch.tensor(float(error is not None))):
            raise error or UserError('rank 0 failed')
        return result

    def check_same_on_ranks(self, number, what):
        """UserError if the processes have different numbers."""
        highest, lowest = self.maximum(number, -number)
        if highest != -lowest:
            raise UserError(f'the processes have from {-lowest:.0f} to {highest:.0f} as the {what}')

    def __str__(self):
        many = f'{self.world} processes, ' if self.world > 1 else ''
        compiled = 'compiled' if self.compiled else 'not compiled'
        return f'{many}{self.device}, {str(self.dtype).removeprefix("torch.")}, {compiled}'


@contextlib.contextmanager
def open_machine(options, compile=False):
    """The Machine of the options device and dtype, and of `compile`, as choose_compile takes it;
    under torchrun connected to the others, and only rank 0 prints."""
    keep_memory()
    device = choose_device(options.device)
    machine = Machine(device, choose_dtype(options.dtype, device))
    with process_group(machine), quiet(machine.rank > 0), out_of_memory(options):
        machine.compiled = choose_compile(compile, device)
        yield machine


@contextlib.contextmanager
def process_group(machine):
    """Under torchrun join the other processes, and say to the machine which one this is."""
    if 'RANK' not in os.environ:
        yield
        return
    dist.init_process_group('cpu:gloo,cuda:nccl' if machine.device.type == 'cuda' else 'gloo')
    machine.rank, machine.world = dist.get_rank(), dist.get_world_size()
    try:
        yield
    finally:  # threads of a group that outlives DDP end the process with an abort
        gc.collect()  # DDP is in reference cycles
        dist.destroy_process_group()


@contextlib.contextmanager
def quiet(wanted):
    """Print nothing, if wanted."""
    if not wanted:
        yield
        return
    with open(os.devnull, 'w') as silence, contextlib.redirect_stdout(silence):
        yield


@contextlib.contextmanager
def out_of_memory(options):
    """Turn torch's errors about memory into a UserError that names the options that help."""
    try:
        yield
    except RuntimeError as error:  # CUDA's OutOfMemoryError is one
        if not re.search("out of memory|can't allocate memory", str(error)):
            raise
        sizes = [name for name in ('micro_batch_size', 'block_size', 'context', 'num_samples')
                 if hasattr(options, name)]
        more = ', or --recompute=True' if hasattr(options, 'recompute') else ''
        raise UserError(f'out of memory: a smaller {" or ".join(sizes)} helps{more}') from None


def keep_memory():
    """Have glibc keep what is freed for the next step: memory that comes back from the system has
    to be zeroed first, which on a CPU can take longer than the arithmetic on it."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, 2 ** 31 - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 2 ** 28)  # M_MMAP_THRESHOLD: larger pieces do go back


def choose_device(name):
    """The torch.device of the option `device`; under torchrun each process has its own GPU."""
    if name == 'auto':
        mps = torch.backends.mps.is_available()
        name = 'cuda' if torch.cuda.is_available() else 'mps' if mps else 'cpu'
    if name == 'cuda' and 'LOCAL_RANK' in os.environ:
        name = f'cuda:{os.environ["LOCAL_RANK"]}'
    try:
        device = torch.device(name)
        if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count() > 0:
            raise RuntimeError(f'there are {torch.cuda.device_count()} GPUs')
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        refusal = UserError(f'device={name} does not work here: {first_line(error)}')
        refusal.any_rank = True  # the processes have GPUs of their own
        raise refusal from None
    if device.type == 'cuda':
        torch.cuda.set_device(device)
    return device


def choose_dtype(name, device):
    """The torch.dtype of the option `dtype`; 'auto' is bfloat16 where the hardware has it."""
    if name == 'float16' and device.type == 'cpu':
        raise UserError('dtype=float16 does not work on a CPU; take bfloat16 or float32')
    if name != 'auto':
        return getattr(torch, name)
    if device.type == 'cuda':
        modern = torch.cuda.get_device_capability(device) >= (8, 0)  # older ones emulate bfloat16
        return torch.bfloat16 if modern else torch.float16
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if device.type == 'cpu' and fast else torch.float32


def choose_compile(option, device):
    """Whether to compile; 'auto': on CUDA, where it works. True is a UserError where it doesn't."""
    if not option or option == 'auto' and device.type != 'cuda':
        return False
    try:
        torch.compile(lambda x: (x + 1).relu())(torch.zeros(8, device=device))
        return True
    except Exception as error:  # whatever a missing or broken compiler raises
        message = f'torch.compile does not work here ({type(error).__name__}: {first_line(error)})'
    if option == 'auto':
        print(f'not compiled, for {message}')
        return False
    raise UserError(f'compile=True: {message}')


@contextlib.contextmanager
def stop_signals():
    """A list that gets the first SIGINT or SIGTERM; the second interrupts at once."""
    received = []

    def handle(number, frame):
        if received:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
