"""The machine a script runs on: device, number format, compiler, other processes, signals."""

import contextlib
import ctypes
import gc
import json
import os
import platform
import re
import signal
import sys
from dataclasses import dataclass

import torch
import torch.distributed as dist

from folio.cli import UserError, first_line, launched
from folio.speed import cache_folder, fastest_format


@dataclass
class Machine:
    """Which of how many processes this is, and what was chosen for all."""
    device: torch.device = torch.device('cpu')
    dtype: torch.dtype = torch.float32
    compiled: bool = False
    rank: int = 0
    world: int = 1
    sharded: bool = False

    def choose(self, options, given, rows, size, seconds=0):
        """Take device, dtype, compile and shard of the options, as far as they have them. given:
        the names of those that the user typed; others that do not work here are chosen anew. A CPU
        is asked by rank 0 for all. rows, size: of the matrix products. seconds: how long the run
        is, if the clock says so, else 0."""
        if getattr(options, 'deterministic', False):
            os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # which CUDA asks for
            torch.use_deterministic_algorithms(True)
        shard = getattr(options, 'shard', False)
        if shard and self.world == 1:
            print('shard=True: there is a single process, which has all; torchrun starts several')
        self.sharded = shard and self.world > 1
        self.device = self.together(choose_device, options.device)
        if self.sharded and self.device.type not in ('cpu', 'cuda'):
            raise UserError(f'shard=True works on cpu and cuda, not on {self.device}')
        asked = self.rank == 0 and self.device.type == 'cpu' and options.dtype != 'float32'
        fastest = self.gather(fastest_format(rows, size) if asked else None)[0]
        self.dtype = self.together(choose_dtype, options.dtype, self.device, fastest,
                                   'dtype' in given)
        self.compiled = self.together(choose_compile, getattr(options, 'compile', False), self,
                                      seconds, 'compile' in given)

    def autocast(self):
        """A context in which matrix products are made in `dtype`. Its cache keeps copies of all the
        weights, of which a sharded model has those of one block at a time."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32,
                              cache_enabled=not self.sharded)

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

    def gather(self, value):
        """The value of each process, which JSON can hold, in a list by rank."""
        text = json.dumps(value).encode()
        mine = bytearray(text.ljust(int(self.maximum(len(text))[0])))
        mine = torch.frombuffer(mine, dtype=torch.uint8)
        texts = [torch.empty_like(mine) for _ in range(self.world)]
        if self.world == 1:
            return [value]
        dist.all_gather(texts, mine)
        return [json.loads(bytes(text.tolist())) for text in texts]

    def together(self, work, *arguments):
        """work(*arguments) of each process, in which they don't meet. A UserError or OSError in one
        ends all: rank 0 prints what all share, and each process what it alone has."""
        result = error = None
        try:
            result = work(*arguments)
        except BrokenPipeError:  # nobody reads what is printed
            raise
        except (UserError, OSError) as caught:
            error = UserError(str(caught))
        errors = self.gather(error and str(error))
        if error:
            error.any_rank = set(errors) != {str(error)}
            raise error
        if any(errors):
            raise SystemExit(1)  # another one prints it
        return result

    def on_rank_0(self, work, *arguments):
        """Rank 0's work(*arguments), elsewhere None; a UserError or OSError in it ends all."""
        return self.together(work if self.rank == 0 else lambda *arguments: None, *arguments)

    def check_same(self, facts):
        """UserError that names what differs between the processes in their facts, a dict."""
        ours, *others = self.gather(facts | {'host': platform.node()})
        for rank, theirs in enumerate(others, 1):
            wrong = [f'{name}={ours[name]} and {theirs.get(name)}' for name in facts
                     if ours[name] != theirs.get(name)]
            if wrong:
                raise UserError(f'rank 0 ({ours["host"]}) and rank {rank} ({theirs["host"]}) '
                                f'differ: {"; ".join(wrong)}')

    def __str__(self):
        many = f'{self.world} processes, ' if self.world > 1 else ''
        many += 'sharded, ' if self.sharded else ''
        compiled = 'compiled' if self.compiled else 'not compiled'
        return f'{many}{self.device}, {str(self.dtype).removeprefix("torch.")}, {compiled}'


@contextlib.contextmanager
def open_machine(options):
    """The Machine for a script with these options, a class or an instance."""
    keep_memory()
    group = process_group() if launched() else contextlib.nullcontext(Machine())
    with out_of_memory(options), group as machine:
        yield machine


@contextlib.contextmanager
def process_group():
    """The Machine of one of the processes that torchrun started; only rank 0 prints."""
    join_processes()
    machine = Machine(rank=dist.get_rank(), world=dist.get_world_size())
    output = open(os.devnull, 'w') if machine.rank else sys.stdout
    try:
        with contextlib.redirect_stdout(output):
            yield machine
    except RuntimeError as error:
        if not re.search('gloo|NCCL|[Cc]onnection (closed|reset)', str(error)):
            raise
        raise UserError(f'another process ended: {first_line(error)}') from None
    finally:  # threads of a group that outlives DDP end the process with an abort
        gc.collect()  # DDP is in reference cycles
        dist.destroy_process_group()


def join_processes():
    """Meet the other processes; ConnectionError, of any rank, where they can't be reached."""
    backend = 'cpu:gloo,cuda:nccl' if torch.cuda.is_available() else 'gloo'
    try:
        store, rank, world = next(dist.rendezvous('env://'))
        if os.environ.get('GROUP_WORLD_SIZE') == '1':  # on several nodes the count may differ
            # torchrun's store outlives a restart, and has the addresses of processes that are dead
            store = dist.PrefixStore(os.environ.get('TORCHELASTIC_RESTART_COUNT', '0'), store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world)
    except (RuntimeError, ValueError) as error:
        raise ConnectionError('the processes could not meet at MASTER_ADDR and MASTER_PORT: '
                              f'{first_line(error)}') from None


@contextlib.contextmanager
def out_of_memory(options):
    """Turn torch's errors about memory into a UserError that names the options that help."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # CUDA's OutOfMemoryError is one
        short = "out of memory|can't allocate memory|size.*overflow"  # the last of a size in bytes
        if isinstance(error, RuntimeError) and not re.search(short, str(error)):
            raise
        names = ('micro_batch_size', 'block_size', 'recompute', 'shard', 'context', 'num_samples')
        helping = [f'--{name}' for name in names if hasattr(options, name)]
        refusal = UserError(f'out of memory; what helps: {", ".join(helping)}')
        refusal.any_rank = True  # it may be short of memory alone
        raise refusal from None


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
        torch.zeros(1, device=device).item()  # which `meta` can't give
    except (RuntimeError, AssertionError, ValueError) as error:  # ValueError: no UTF-8
        raise UserError(f'device={name} does not work here: {first_line(error):.120}') from None
    if device.type == 'cuda':
        torch.cuda.set_device(device)
    return device


def choose_dtype(name, device, fastest, required=True):
    """The torch.dtype of the option `dtype`. 'auto' is bfloat16 where a GPU has it, and on a CPU
    `fastest`. One that does not work is a UserError, or if not `required` replaced by 'auto'."""
    if name == 'float16' and device.type == 'cpu':
        if required:
            raise UserError('dtype=float16 does not work on a CPU; take bfloat16 or float32')
        print(f'dtype=float16 does not work on a CPU; {fastest} is taken')
        name = 'auto'
    if name == 'bfloat16' and fastest == 'float32' and required:
        print('this CPU is not faster with bfloat16 than with float32')
    if name != 'auto':
        return getattr(torch, name)
    if device.type == 'cuda':
        modern = torch.cuda.get_device_capability(device) >= (8, 0)  # older ones emulate bfloat16
        return torch.bfloat16 if modern else torch.float16
    return getattr(torch, fastest or 'float32')


def choose_compile(option, machine, seconds, required):
    """Whether to compile. 'auto': where it works and gains more than it costs in a run that the
    clock ends after these seconds, if it does. True where it doesn't work is a UserError, or if not
    `required` no."""
    if not option or option == 'auto' and not pays_to_compile(machine, seconds):
        return False
    keep_compiled()
    try:
        torch.compile(lambda x: (x + 1).relu())(torch.zeros(8, device=machine.device))
        return True
    except Exception as error:  # whatever a missing or broken compiler raises
        message = f'torch.compile does not work here ({type(error).__name__}: {first_line(error)})'
    if option == 'auto' or not required:
        print(f'not compiled, for {message}')
        return False
    raise UserError(f'compile=True: {message}')


def pays_to_compile(machine, seconds):
    """Whether to compile a run of so many seconds. On a CPU it takes half a minute, and saves a
    quarter of a step in float32, next to none in bfloat16."""
    if machine.device.type == 'cpu':
        return machine.dtype == torch.float32 and seconds >= 120
    return machine.device.type == 'cuda'


def keep_compiled():
    """Have the compiler keep what it made in a folder that lasts, unless the user named one."""
    folder = cache_folder() / 'compiled'
    with contextlib.suppress(OSError):  # then it is kept where torch does
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            os.environ.setdefault('TORCHINDUCTOR_CACHE_DIR', str(folder))


@dataclass
class Signals:
    """What a run has been told: the first signal that asks it to stop, and whether to save."""
    stop: int = 0
    save: bool = False

    def handle(self, number, frame):
        if number == getattr(signal, 'SIGUSR1', None):
            self.save = True
        elif self.stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            self.stop = self.stop or number


@contextlib.contextmanager
def catch_signals():
    """Signals, which hears SIGINT, SIGTERM, SIGHUP and SIGUSR1 until the end of the `with`. A
    second SIGINT interrupts at once. SIGHUP stays ignored if it is, as by nohup."""
    signals, names = Signals(), ('SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1')
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]  # not on Windows
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler != signal.SIG_IGN or number != getattr(signal, 'SIGHUP', None):
            signal.signal(number, signals.handle)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
