"""Which number format a CPU is fast in, asked of the CPU itself.

    name = fastest_format(rows=4096, size=192)  # 'bfloat16' or 'float32'

Flags don't tell: a CPU may have instructions for bfloat16 and be slower with them. So products of
the model's own size are timed, once, and the answer is kept in the user's cache folder.
"""

import contextlib
import json
import math
import os
import platform
import re
import time
from pathlib import Path

import torch
import torch.nn.functional as F

FORMATS = {'float32': torch.float32, 'bfloat16': torch.bfloat16}
MARGIN = 1.2  # how many times faster bfloat16 has to be
SECONDS = 0.1  # for the timing, and until each format had 3 turns
MOST = 2 ** 25  # numbers in the weights, and in what a product puts out


def fastest_format(rows, size, layers=0):
    """'bfloat16' where the CPU is clearly faster with it, else 'float32', for products of (rows,
    size) and (size, 4 size): those of training, or, where layers are given, those of sampling,
    which reads the weights of all layers for a few rows."""
    kind = f'sample, {layers} layers' if layers else 'train'
    question = (f'{cpu()}; {torch.get_num_threads()} threads, torch {torch.__version__}; {kind}, '
                f'{rows} x {size}')
    answers = read_answers()
    if answers.get(question) not in FORMATS:
        seconds = time_formats(rows, size, layers)
        fast = seconds['float32'] > MARGIN * seconds['bfloat16']
        answers[question] = 'bfloat16' if fast else 'float32'
        write_answers(answers)
    return answers[question]


def time_formats(rows, size, layers):
    """The least seconds that the products took in each format, a dict; they are timed in turns."""
    seconds = dict.fromkeys(FORMATS, math.inf)
    work = {name: make_products(rows, size, layers, dtype) for name, dtype in FORMATS.items()}
    turns, end = 0, time.perf_counter() + SECONDS
    while turns < 3 or time.perf_counter() < end:
        for name in FORMATS:
            begin = time.perf_counter()
            work[name]()
            seconds[name] = min(seconds[name], time.perf_counter() - begin)
        turns += 1
    return seconds


def make_products(rows, size, layers, dtype):
    """A function that makes the products once; those of a large model are made fewer."""
    size = min(size, 4096)  # beyond which products are alike
    rows = max(1, min(rows, MOST // (8 * size)))
    matrices = max(1, min(3 * layers, MOST // (4 * size * size)))
    weights = [torch.full((4 * size, size), 0.01, dtype=dtype) for _ in range(matrices)]
    x, y = (torch.full((rows, width), 0.01, dtype=dtype) for width in (size, 4 * size))

    def multiply():
        for weight in weights:
            F.linear(x, weight)
        if not layers:  # the backward pass
            y @ weights[0]
            y.t() @ x
    return multiply


def cpu():
    """What tells this kind of CPU from others."""
    lines = []
    with contextlib.suppress(OSError):  # Linux alone has it
        text = Path('/proc/cpuinfo').read_text(encoding='utf-8').split('\n\n')[0]
        lines = re.findall(r'(?:cpu family|model|model name|stepping)\s*: (.*)', text)
    return ' '.join(lines) or f'{platform.machine()} {platform.processor()}'


# --- what is kept --------------------------------------------------------------------------------

def cache_folder():
    """Where answers and compiled code are kept; XDG_CACHE_HOME may name another place."""
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
