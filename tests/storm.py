"""Kill runs at random moments, go on with them, and see whether anything is lost.

    python tests/storm.py                               6 kills in each storm, two minutes
    python tests/storm.py --kills=100                   the long run, half an hour on two cores
    python tests/storm.py saves prepare --kills=20 --seed=7
    python tests/storm.py --leaks                       20,000 steps: does memory grow, do threads?

    one      one process, killed anywhere
    saves    one that saves after each step and whose saves take long, so that most kills hit one
    two      two processes under torchrun: one of them is killed, or torchrun with both
    prepare  prepare.py, with and without an earlier data set in its place

SIGKILL ends a run, and --resume=True goes on with it, until it comes to its end. Then ckpt.pt,
best.pt, log.jsonl and samples.txt have to be those of an undisturbed run, bit for bit, all but the
clock's numbers; after each kill the checkpoints that are there have to be whole. A data set has to
be all of the old one or all of the new one at each moment, or be refused. One line is printed for
each kill, one for each storm; the exit code is the number of losses.
"""

import argparse
import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from conftest import ENVIRONMENT, TEXT, TINY, children, copy_scripts

import folio.options
from folio import checkpoint
from folio.cli import UserError
from prepare import open_corpus

TORCHRUN = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
SLOWLY = '''
import os, runpy, sys, time

def slow(work):
    def slowed(*arguments, **options):
        time.sleep(0.02)
        return work(*arguments, **options)
    return slowed

for name in ('fsync', 'replace', 'rename', 'unlink'):
    setattr(os, name, slow(getattr(os, name)))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
'''
COUNTED = '''
import json, os, sys, folio.journal, train

def counting(*arguments, step=train.train_step):
    progress, total = arguments[-1], arguments[-3].max_steps
    if any(0 < mark - progress.step <= total // 10 for mark in (total // 4, total)):
        pages = int(open('/proc/self/statm').read().split()[1])
        print(json.dumps({'late': progress.step >= total // 2,
                          'megabytes': pages * os.sysconf('SC_PAGE_SIZE') / 1e6,
                          'files': len(os.listdir('/proc/self/fd')),
                          'threads': len(os.listdir('/proc/self/task'))}), file=sys.stderr)
    return step(*arguments)

train.train_step = counting
folio.journal.CURVE = 500  # points, so that the curve grows no more after a quarter
train.main(sys.argv[1:])
'''
COMMON = [*TINY, '--dropout=0.1', '--eval_tokens=200', '--resume=True']
SAVING = ['--max_steps=30', '--eval_interval=15', '--save_minutes=1e-9']
STORMS = {  # what runs, and for how long
    'one': ['train.py', *COMMON, '--max_steps=240', '--eval_interval=30'],
    'saves': ['slowly.py', 'train.py', *COMMON, *SAVING],
    'two': [*TORCHRUN, 'train.py', *COMMON, '--max_steps=150', '--eval_interval=10'],
    'prepare': ['prepare.py', '--input=long.txt', '--name=stormy'],
}
CLOCK = {'seconds': 0, 'tokens_per_second': 0}  # what no two runs have in common
PATIENCE = 60  # seconds in which anything ends that is not killed


@dataclasses.dataclass
class Storm:
    """One storm: where it rages, how many kills are left of it, and what came of it."""
    name: str
    folder: Path
    left: int
    random: random.Random
    hits: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    losses: list = dataclasses.field(default_factory=list)
    ended: int = 0  # runs that came to their end

    def hit(self, where):
        """Count a kill."""
        self.left -= 1
        self.hits[where] += 1
        print(f'{self.name}: kill {self.hits.total()}, {where}', flush=True)

    def lose(self, what):
        """Count a loss."""
        self.losses.append(what)
        print(f'{self.name}: LOST: {what}', flush=True)

    def moment(self, seconds):
        """How long to wait for the next kill in what takes so many seconds."""
        return self.random.uniform(0.2, 0.8) * seconds if self.left > 0 else PATIENCE

    def summary(self):
        hits = ', '.join(f'{count} {where}' for where, count in self.hits.most_common())
        return (f'{self.name}: {self.hits.total()} kills ({hits}); {self.ended} came to their end; '
                f'{len(self.losses)} losses')


def ride_out(name, folder, kills, seed=1337):
    """The Storm of this name, when it is over; it takes place in an empty folder."""
    prepare_folder(folder)
    storm = Storm(name, folder, kills, random.Random(f'{name} {seed}'))
    (prepare_storm if name == 'prepare' else train_storm)(storm)
    print(storm.summary(), flush=True)
    return storm


def prepare_folder(folder):
    """Put the scripts and the tiny corpus into a folder; matplotlib, which would take most of the
    time, is missing there."""
    copy_scripts(folder)
    (folder / 'slowly.py').write_text(SLOWLY)
    (folder / 'counted.py').write_text(COUNTED)
    (folder / 'matplotlib.py').write_text('raise ImportError("no pictures here")\n')
    (folder / 'long.txt').write_text(TEXT * 400)
    finish(start(folder, ['prepare.py', '--input=tiny.txt', '--name=tiny']))


def start(folder, command):
    """The process of a command of Python's; what it prints goes into a file in the folder."""
    with open(folder / 'output.txt', 'w') as output:
        process = subprocess.Popen([sys.executable, *command], cwd=folder, env=ENVIRONMENT,
                                   stdout=output, stderr=output)
    process.output = folder / 'output.txt'
    return process


def finish(process):
    """Wait for a process to end well; returns the seconds."""
    began = time.perf_counter()
    assert process.wait(PATIENCE) == 0, process.output.read_text()
    return time.perf_counter() - began


# --- training ------------------------------------------------------------------------------------

def train_storm(storm):
    """Kill runs, and compare each that comes to its end with one that is not disturbed."""
    command, whole = STORMS[storm.name], storm.folder / 'out' / 'whole'
    seconds = finish(start(storm.folder, [*command, f'--out_dir={whole}']))
    while storm.left > 0 and len(storm.losses) < 5:
        run = storm.folder / 'out' / f'run{storm.ended}'
        while not ends(storm, [*command, f'--out_dir={run}'], run, seconds):
            pass
        storm.ended += 1
        for difference in differences(whole, run):
            storm.lose(f'{run.name}: {difference}')


def ends(storm, command, run, seconds):
    """Start a run, or go on with it; returns whether it ended before the kill came."""
    began = time.time()
    process = start(storm.folder, command)
    try:
        if process.wait(storm.moment(seconds)):
            storm.lose(f'{run.name} ended with {process.returncode}: {process.output.read_text()}')
        return True
    except subprocess.TimeoutExpired:
        victim = kill(storm, process) if storm.name == 'two' else 'the process'
    process.kill()
    process.wait()
    storm.hit(f'{victim} {doing(run, began)}')
    for path in (run / name for name in ('ckpt.pt', 'ckpt.prev.pt', 'best.pt')):
        if path.exists() and not is_whole(path):
            storm.lose(f'{path} is not whole')
    return False


def kill(storm, torchrun):
    """Kill one of the processes of torchrun, which has to end then, or all; returns which."""
    ranks = children(torchrun.pid)
    alone = bool(ranks) and storm.random.random() < 0.5
    victims = [storm.random.choice(ranks)] if alone else [torchrun.pid, *ranks]
    for victim in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    if alone:
        try:
            torchrun.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            storm.lose('torchrun does not end')
    return 'one of two' if alone else 'both and torchrun'


def doing(run, began):
    """What a run was doing when it was killed, by the files that it left since it began."""
    def is_new(path):
        return path.exists() and path.stat().st_mtime >= began
    if not is_new(run / 'log.jsonl'):
        return 'starting'
    if (run / 'ckpt.prev.pt').exists() and not (run / 'ckpt.pt').exists():
        return 'between two renames'
    return 'writing a checkpoint' if any(map(is_new, run.glob('*.pt.tmp'))) else 'training'


def is_whole(path):
    try:
        return bool(checkpoint.read(path))
    except UserError:
        return False


def differences(one, other):
    """The names of the files in which two runs differ in more than the clock."""
    names = {'ckpt.pt': state_of, 'best.pt': state_of, 'log.jsonl': log_of,
             'samples.txt': Path.read_bytes}
    return [name for name, content in names.items()
            if not equal(content(one / name), content(other / name))]


def state_of(path):
    """A checkpoint without the clock and the name of its folder."""
    state = checkpoint.read(path) | CLOCK
    return state | {'config': state['config'] | {'out_dir': None}}


def log_of(path):
    """The lines of a log without the clock."""
    return [json.loads(line) | CLOCK for line in path.read_text().splitlines()]


def equal(one, other):
    """Whether two values are the same bit for bit, tensors in dicts and lists included."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    if isinstance(one, dict):
        return list(one) == list(other) and equal(list(one.values()), list(other.values()))
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


# --- preparing -----------------------------------------------------------------------------------

def prepare_storm(storm):
    """Kill prepare.py, which makes one of two data sets in place of the other."""
    kinds, whole = ('char', 'byte'), {None: None}
    for kind in kinds:
        seconds = finish(start(storm.folder, prepare_command(kind)))
        whole[kind] = opened(storm.folder)
    while storm.left > 0 and len(storm.losses) < 5:
        if storm.random.random() < 0.3:
            shutil.rmtree(storm.folder / 'data' / 'stormy', ignore_errors=True)
        prepare_once(storm, storm.random.choice(kinds), whole, seconds)
    for kind in kinds:
        prepare_once(storm, kind, whole, seconds)


def prepare_command(kind):
    return [*STORMS['prepare'], f'--tokenizer={kind}']


def prepare_once(storm, kind, whole, seconds):
    """Run prepare.py until it ends or is killed; the data set is opened all the time."""
    slow = storm.random.random() < 0.5
    process = start(storm.folder, ['slowly.py'] * slow + prepare_command(kind))
    for _ in moments(storm, process, seconds, slow):
        if opened(storm.folder) not in whole.values():
            storm.lose('a data set is opened that is neither the old one nor the new one')
    process.kill()
    if process.wait() == -signal.SIGKILL:
        names = sorted(path.name for path in (storm.folder / 'data/stormy').glob('*'))
        storm.hit(f'with {" ".join(names) or "nothing"}')
        if opened(storm.folder) not in whole.values():
            storm.lose('a half made data set is opened')
        return
    storm.ended += 1
    if process.returncode or opened(storm.folder) != whole[kind]:
        storm.lose(f'prepare.py ended with another data set: {process.output.read_text()}')


def moments(storm, process, seconds, slow):
    """The moments before the next kill, as an iterator; a process in slow motion is killed while it
    puts its files in place, which would else be over too soon."""
    finished = storm.folder / 'data/stormy/meta.json.tmp'
    while slow and process.poll() is None and not finished.exists():
        yield
    until = time.perf_counter() + storm.moment(0.15 if slow else 1.3 * seconds)
    while process.poll() is None and time.perf_counter() < until:
        yield


def opened(folder):
    """What a reader finds in the data set: hashes of its files and its meta.json, or None."""
    with mock.patch.object(folio.options, 'ROOT', folder):
        try:
            *splits, meta = open_corpus('stormy')
            ids = [split.read(0, len(split)).tobytes() for split in splits]
        except (UserError, OSError):
            return None
    return [hashlib.sha256(part).hexdigest() for part in ids], meta | CLOCK


# --- leaks ---------------------------------------------------------------------------------------

def leaks(folder, steps):
    """What grows by more than it should between a quarter of the steps and all, {name: (then, at
    the end)}: memory by 5 MB, or open files or threads at all. Saves go on all the time."""
    prepare_folder(folder)
    (folder / 'matplotlib.py').unlink()
    argv = [*TINY, '--n_layer=1', f'--max_steps={steps}', f'--eval_interval={steps // 20}',
            '--eval_tokens=20', '--save_minutes=0.03', '--log_interval=5']
    process = start(folder, ['counted.py', *argv])
    assert process.wait() == 0, process.output.read_text()
    counts = [json.loads(line) for line in process.output.read_text().splitlines()
              if line.startswith('{"late')]
    growth = {}
    for name, most in {'megabytes': 5, 'files': 0, 'threads': 0}.items():
        # the fewest: a save under way has a thread, a file and a copy of the state
        then, now = (min(count[name] for count in counts if count['late'] == late)
                     for late in (False, True))
        print(f'{name}: {then:.1f} after {steps // 4:,} steps, {now:.1f} after {steps:,}')
        growth |= {name: (then, now)} if now > then + most else {}
    return growth


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('storms', nargs='*', help=f'of {", ".join(STORMS)}; none: all')
    parser.add_argument('--kills', type=int, default=6, help='in each storm')
    parser.add_argument('--seed', type=int, default=1337)
    parser.add_argument('--leaks', action='store_true')
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        if options.leaks:
            return len(leaks(Path(folder), 20_000))
        over = [ride_out(name, Path(folder, name), options.kills, options.seed)
                for name in options.storms or STORMS]
    print('\n'.join(storm.summary() for storm in over))
    return sum(len(storm.losses) for storm in over)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
