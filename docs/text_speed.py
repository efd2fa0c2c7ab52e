"""How fast a text is prepared, and in how much memory, with each tokenizer.

    python docs/text_speed.py --text_mb=50

The text is the source code of the standard library, repeated. Each tokenizer prepares it in a
process of its own, in turns with the others; the table has medians.
"""

import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import folio.options
import prepare
from folio import cli
from folio.cli import progress_bar

TURN = """
import os, pathlib, sys, time
import folio.options, folio.texts, folio.tokenizer, prepare
name, path = sys.argv[1], pathlib.Path(sys.argv[2])
folio.options.ROOT = path.parent
if ',' in name:
    encoding = folio.tokenizer.Tokenizer(folio.tokenizer.tiktoken_spec('gpt2')).encoding
    whole, size = path.read_text(encoding='utf-8', errors='ignore'), folio.texts.PIECE
    pieces = [whole[i:i + size] for i in range(0, len(whole), size)]
    work = lambda: encoding.encode_ordinary_batch(pieces, num_threads=os.cpu_count())
else:
    work = lambda: prepare.main([f'--input={path}', f'--tokenizer={name}', '--name=text'])
start = time.perf_counter()
work()
status = pathlib.Path('/proc/self/status')  # only Linux has it
kilobytes = status.read_text().split('VmHWM:')[1].split()[0] if status.exists() else 'nan'
print(time.perf_counter() - start, 1024 * float(kilobytes))
"""  # in a process of its own, without torch
TOKENIZERS = ['char', 'byte', 'gpt2', "gpt2, tiktoken's encode_ordinary_batch", 'bpe:4096']


@dataclass
class TextConfig:
    """How much to prepare."""
    text_mb: Annotated[int, '>= 1'] = 10  # megabytes of text
    rounds: Annotated[int, '>= 1'] = 3  # turns of each tokenizer


def main(argv):
    """Print the table."""
    options, _ = folio.options.parse(TextConfig, argv)
    with tempfile.TemporaryDirectory() as folder:
        seconds, memory = take_turns(make_text(folder, options.text_mb * 10 ** 6), options.rounds)
    print('| tokenizer | MB/s | peak memory, MB |\n|---|---|---|')
    for name in seconds:
        rate = options.text_mb / statistics.median(seconds[name])
        print(f'| {name} | {rate:.1f} | {memory[name] / 1e6:.0f} |')


def make_text(folder, size):
    """The path of a file in the folder with `size` bytes of text."""
    source = b''.join(path.read_bytes() for path in prepare.recipe_files('stdlib'))
    path = Path(folder, 'text.txt')
    path.write_bytes((source * (size // len(source) + 1))[:size])
    return path


def take_turns(path, rounds):
    """({name: seconds of each round}, {name: peak bytes}) of the tokenizers that work here."""
    seconds, memory = defaultdict(list), {}
    with progress_bar(total=rounds * len(TOKENIZERS)) as bar:
        for name in TOKENIZERS * rounds:
            turn = subprocess.run([sys.executable, '-c', TURN, name, path], text=True,
                                  cwd=folio.options.ROOT, capture_output=True)
            if turn.returncode == 0:  # else there is no vocabulary, or a library is missing
                second, memory[name] = map(float, turn.stdout.split()[-2:])
                seconds[name].append(second)
            bar.update()
    return seconds, memory


if __name__ == '__main__':
    cli.run(main)
