"""What people look at in the folder of a run, out/NAME/.

    log.jsonl   a JSON object for each step
    samples.txt the sample of each evaluation, indented, after a line with its step
    loss.png    the losses over the tokens seen

A tracker, such as Weights & Biases, gets the log's numbers too, if the options name one.
"""

import contextlib
import dataclasses
import gc
import inspect
import json
import math
import os
import re
from pathlib import Path

import folio.options
from folio.cli import UserError, first_line, import_library, short

CURVE = 5000  # the points of a curve, about; a picture has fewer pixels
STEP = re.compile(rb'(?:\{"step": |step )(\d{1,18})')  # how a record or a sample begins


class Journal:
    """What is kept of a run. What fails here is said, once, and training goes on; what could not be
    written is written with what comes next.

    folder: None in a process that keeps nothing. The files of a run that goes on after `step` steps
    lose what came later. tracked: the id of its run in the tracker, or its name, which goes on too.
    """

    def __init__(self, folder, options, step, tracked=None):
        self.folder, self.tracked, self.tracker, self.failing = folder, tracked, None, set()
        self.unwritten = {'log.jsonl': b'', 'samples.txt': b''}
        self.module = options.tracker or (options.wandb_project and 'wandb')
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        for name in self.unwritten:
            cut_file(folder / name, step)
        if self.module:
            self.attempt(self.module, self.start_tracker, options)

    def start_tracker(self, options):
        """Start a run in the tracker, or go on with the one that is tracked: wandb knows it by its
        id, trackio by its name."""
        if not self.module.isidentifier():  # it may come from a checkpoint
            raise UserError('that is no name of a module')
        with contextlib.suppress(ImportError):  # trackio looks for it while `draw` may load it
            import matplotlib.figure  # noqa: F401
        init = import_library(self.module, 'tracker' if options.tracker else 'wandb_project').init
        by = 'id' if 'id' in inspect.signature(init).parameters else 'name'
        settings = {'project': options.wandb_project or Path(options.dataset).name,
                    'name': self.folder.name, 'config': dataclasses.asdict(options)}
        if self.tracked:
            settings |= {by: self.tracked, 'resume': 'allow'}
        self.tracker = init(**settings)
        self.tracked = str(getattr(self.tracker, by, self.folder.name))

    def log(self, records):
        """Add records, dicts with their step, to the log."""
        self.write('log.jsonl', ''.join(json.dumps(record) + '\n' for record in records))

    def track(self, records):
        """Send records to the tracker, until it fails: each further call might take as long."""
        for record in records if self.tracker else []:
            if self.module not in self.failing:
                numbers = {name: record[name] for name in record if name != 'step'}
                self.attempt(self.module, self.tracker.log, numbers, record['step'])

    def sample(self, step, text):
        """Add an indented text to samples.txt, its newlines as they are."""
        self.write('samples.txt', f'step {step}\n{text}\n')

    def write(self, name, text):
        if self.folder:
            self.unwritten[name] += text.encode()
            self.attempt(name, self.append, name)

    def append(self, name):
        """Write what is unwritten of a file, as far as the disk takes it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / name, 'ab', buffering=0) as file:
            while data := self.unwritten[name]:
                self.unwritten[name] = data[file.write(data):]

    def draw(self):
        """Draw loss.png, if there is matplotlib."""
        self.attempt('loss.png', lambda: draw_curves(
            {'validation': read_log(self.folder, CURVE)}, self.folder / 'loss.png'))
        gc.collect()  # figures are in reference cycles, and Python itself may not look for hours

    def attempt(self, what, work, *arguments):
        """Call work; of failures one after another the first is said."""
        try:
            work(*arguments)
            self.failing.discard(what)
        except Exception as error:  # whatever a disk, a library or its server bring
            if what not in self.failing:
                print(f'{what} failed, training goes on: {first_line(error)}', flush=True)
            self.failing.add(what)


def read_log(folder, most=None):
    """The records of log.jsonl, one dict a step; a line that a crash cut short is left out. most:
    read about so many steps, evenly, and all that were evaluated."""
    path, records = folder / 'log.jsonl', {}
    if not path.exists():
        return []
    stride = 1 + path.stat().st_size // (200 * most) if most else 1  # a line has about 200 bytes
    with open(path, encoding='utf-8', errors='replace') as file:
        for number, line in enumerate(file):
            if number % stride == 0 or '"val_loss"' in line:
                with contextlib.suppress(ValueError, RecursionError, TypeError, KeyError):
                    record = json.loads(line)
                    records[record['step']] = records.get(record['step'], {}) | record
    return list(records.values())


def cut_file(path, step):
    """Leave out of a log, or of samples, what came after `step` steps or was cut short."""
    path.touch()
    temporary, latest = path.with_name(f'{path.name}.tmp'), 0
    with open(path, 'rb') as file, open(temporary, 'wb') as kept:
        for line in file:
            if found := STEP.match(line):
                latest = int(found[1])
            if latest <= step and line.endswith(b'\n'):
                kept.write(line)
    os.replace(temporary, path)


# --- what a person reads -------------------------------------------------------------------------

def tell_start(options, machine, parameters, tokens):
    """What is trained, on what and how; parameters and tokens: how many."""
    rise = f'{options.batch_size_start} to ' if options.batch_size_start else ''
    micro = options.micro_batch_size or options.batch_size // machine.world
    print(f'{parameters:,} parameters on {options.dataset} ({tokens:,} tokens), '
          f'{rise}{options.batch_size} x {options.block_size} tokens a step, {micro} sequences at '
          f'once; {machine}', flush=True)
    if tokens < 4 * options.vocab_size and options.init_from is None:
        print(f'a vocabulary of {options.vocab_size:,} is too large for {tokens:,} tokens: most of '
              'it is hardly seen; prepare the text with --tokenizer=char or --tokenizer=bpe:1024')


def tell_progress(record, bar, max_steps, max_seconds, share):
    """The last step's numbers, in the bar or, where there is none to be seen, as a line. share: the
    part of the GPU's peak that its products are (MFU), if known."""
    step, seconds = record['step'], record['seconds']
    loss = math.nan if record['train_loss'] is None else record['train_loss']
    bar.n = min(seconds, bar.total) if max_steps is None else step
    left = int(min(seconds * (bar.total - bar.n) / bar.n, max(0, max_seconds - seconds)))
    of_peak = f' ({share:.0%} of the peak)' if share else ''
    text = (f'step {step:,}  loss {loss:.4f}  lr {record["lr"]:.1e}  '
            f'{record["tokens_per_second"]:,} tokens/s{of_peak}  {left // 60}:{left % 60:02} left')
    if bar.disable:
        print(text, flush=True)
    bar.set_description_str(text)


def tell_end(folder, step, best_loss, reason):
    """What became of the run, and what to do with it. reason: what stopped it early, or None."""
    out_dir, best, picture = f'--out_dir={short(folder)}', folder / 'best.pt', folder / 'loss.png'
    if reason:
        print(f'stopped by {reason} after step {step:,}; to go on: '
              f'{folio.options.command("train.py", out_dir, "--resume=True")}')
    if best.exists():
        print(f'best validation loss: {best_loss:.4f}, in {short(best)}')
    print(f'the curve: {short(picture) if picture.exists() else "pip install matplotlib"}; '
          f'more samples:\n{folio.options.command("sample.py", out_dir)}')


# --- the curve -----------------------------------------------------------------------------------

def draw_curves(logs, path):
    """Draw the losses of logs, {label: records}, over tokens into a picture; returns whether there
    is matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    axes = Figure(figsize=(7, 4.5), layout='constrained').subplots()
    axes.set(xlabel='tokens', ylabel='loss in nats per token (faint: training)')
    for i, (label, records) in enumerate(logs.items()):
        evaluated = [record for record in records if 'val_loss' in record]
        axes.plot([r['tokens'] for r in records], [r.get('train_loss') for r in records],
                  color=f'C{i}', alpha=0.4, linewidth=0.8)
        axes.plot([r['tokens'] for r in evaluated], [r['val_loss'] for r in evaluated],
                  color=f'C{i}', label=label, marker='.')
    axes.legend(loc='upper right')  # to look for the best place takes long
    path.parent.mkdir(parents=True, exist_ok=True)
    axes.figure.savefig(path, dpi=150)
    return True
