"""Which number format a CPU is fast in, asked of the CPU itself; how fast a GPU can be.

    name = fastest_format(rows=4096, size=192)  # 'bfloat16' or 'float32'

Flags don't tell: a CPU may have instructions for bfloat16 and be slower with them. So products of
the model's own size are timed, once, and the answer is kept in the user's cache folder.
"""

import contextlib
import functools
import json
import math
import os
import platform
import re
import time
import zlib
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from folio.packed import pack

FORMATS = {'float32': torch.float32, 'bfloat16': torch.bfloat16}
MARGIN = 1.2  # how many times faster bfloat16 has to be
SECONDS = 0.1  # that the timing takes, if not a single turn of each takes longer
WIDEST = 1024  # beyond which products are alike
LARGEST = 2 ** 28  # multiplications in a product
PEAKS = {'H100 PCIe': 756e12, 'H100 NVL': 835e12, 'H100': 989e12, 'H200': 989e12,
         'B200': 2250e12, 'A100': 312e12, 'A10G': 70e12, 'L40S': 362e12, 'L40': 181e12,
         'L4': 121e12, 'RTX 4090': 165e12, 'RTX 3090': 71e12}
WEIGHTS = 2 ** 25  # numbers in the weights that are read in a turn, too many for a CPU's caches


def fastest_format(rows, size, layers=0):
    """'bfloat16' where the CPU is clearly faster with it, else 'float32', for products of (rows,
    size) and (size, 4 size): those of training, or, where layers are given, those of sampling,
    which reads the weights of all layers for a few rows."""
    kind = f'sample, {layers} packed layers' if layers else 'train'
    question = (f'{kind_of_cpu()}; {torch.get_num_threads()} threads, torch {torch.__version__}; '
                f'{kind}, {rows} x {size}')
    answers = read_answers()
    if answers.get(question) not in list(FORMATS):
        seconds = time_formats(rows, size, layers)
        fast = seconds['float32'] > MARGIN * seconds['bfloat16']
        answers[question] = 'bfloat16' if fast else 'float32'
        write_answers(answers)
    return answers[question]


def time_formats(rows, size, layers):
    """The least seconds that the products took in each format, a dict; they are timed in turns."""
    seconds = dict.fromkeys(FORMATS, math.inf)
    work = {name: make_products(rows, size, layers, dtype) for name, dtype in FORMATS.items()}
    for multiply in work.values():
        multiply()  # the first time takes longer
    end = time.perf_counter() + SECONDS
    while math.inf in seconds.values() or time.perf_counter() < end:
        for name, multiply in work.items():
            begin = time.perf_counter()
            multiply()
            seconds[name] = min(seconds[name], time.perf_counter() - begin)
    return seconds


def make_products(rows, size, layers, dtype):
    """A function that makes the products once, of a large model not all."""
    size = min(size, WIDEST)
    rows = min(rows, LARGEST // (4 * size * size))
    x, y = (torch.full((rows, width), 0.01, dtype=dtype) for width in (size, 4 * size))
    if layers:
        return functools.partial(sampling_layers(size, layers, dtype, rows), x)
    weight = torch.full((4 * size, size), 0.01, dtype=dtype)

    def train():
        F.linear(x, weight)
        y @ weight  # the backward pass
        y.t() @ x
    return train


def sampling_layers(size, layers, dtype, rows):
    """A function of x that multiplies it by the weights of many layers, as sampling does."""
    count = max(1, min(3 * layers, WEIGHTS // (4 * size * size)))
    linears = [nn.utils.skip_init(nn.Linear, size, 4 * size, bias=False) for _ in range(count)]
    for linear in linears:
        nn.init.constant_(linear.weight, 0.01)
    packed = pack(nn.Sequential(*linears), dtype, rows)

    def sample(x):
        for layer in packed:
            layer(x)
    return sample


def kind_of_cpu():
    """What tells this kind of CPU from others: its name, and a checksum of what it can do."""
    name, can_do = f'{platform.machine()} {platform.processor()}', ''
    with contextlib.suppress(OSError):  # Linux alone has it
        text = Path('/proc/cpuinfo').read_text(encoding='utf-8').split('\n\n')[0]
        lines = [line for line in text.splitlines() if 'MHz' not in line and 'mips' not in line]
        name = ' '.join(re.findall(r'model name\s*: (.*)', text)) or name
        can_do = f' {zlib.crc32(str(lines).encode()):08x}'
    return name + can_do


def peak_rate(device):
    """The FLOP/s of a GPU's products in bfloat16, without sparsity, by the maker's data sheet; None
    for another device."""
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else ''
    return next((peak for part, peak in PEAKS.items() if re.search(rf'\b{part}\b', name)), None)


# --- what is kept --------------------------------------------------------------------------------

def cache_folder():
    """Where answers are kept, ~/.cache/folio; XDG_CACHE_HOME may name another place."""
    return Path(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'), 'folio')


def read_answers():
    """What was answered before, {question: format}."""
    try:
        answers = json.loads((cache_folder() / 'formats.json').read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError):  # not there, or damaged
        answers = {}
    return answers if isinstance(answers, dict) else {}


def write_answers(answers):
    """Keep the answers, if the folder can be written."""
    path = cache_folder() / 'formats.json'
    temporary = path.with_suffix(f'.{os.getpid()}')
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(answers, indent=1), encoding='utf-8')
        os.replace(temporary, path)
