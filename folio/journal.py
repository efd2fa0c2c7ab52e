"""What people look at in the folder of a run, out/NAME/.

    log.jsonl   a JSON object for each step
    samples.txt the sample of each evaluation, indented, after a line with its step
    loss.png    the losses over the tokens seen

Weights & Biases gets the log's numbers too, if the options name a project there.
"""

import contextlib
import dataclasses
import gc
import json
import math
import os
import re
from pathlib import Path

import folio.options
from folio.cli import UserError, first_line, import_library, short

CURVE = 5000  # the points of a curve, about; a picture has fewer pixels


class Journal:
    """What rank 0 keeps of a run. What fails here is said, once, and training goes on; lines that
    could not be written are tried again with the next ones.

    The files of a run that goes on after `step` steps lose what came later. tracked: the id of its
    run of Weights & Biases, which goes on too.
    """

    def __init__(self, folder, options, step, tracked=None):
        self.folder, self.failing = folder, set()
        self.unwritten = {'log.jsonl': '', 'samples.txt': ''}
        folder.mkdir(parents=True, exist_ok=True)
        cut_log(folder / 'log.jsonl', step)
        cut_samples(folder / 'samples.txt', step)
        self.tracker = None
        if options.wandb_project:
            self.start_tracker(options, tracked)

    def start_tracker(self, options, tracked):
        """Have a tracker, without which a new run does not start, but an older one goes on."""
        try:
            self.tracker = start_wandb(options, self.folder, tracked)
        except UserError as error:
            if tracked is None:
                raise
            print(f'{error}; training goes on without it')

    def log(self, records):
        """Add records, dicts with their step, to the log."""
        self.write('log.jsonl', ''.join(json.dumps(record) + '\n' for record in records))

    def track(self, records):
        """Send records to the tracker, which may take its time to fail."""
        for record in records if self.tracker else []:
            if not self.attempt('wandb', self.tracker.log, record, record['step']):
                self.tracker = None  # each further call might take as long to fail
                return

    def sample(self, step, text):
        """Add an indented text to samples.txt, its newlines as they are."""
        self.write('samples.txt', f'step {step}\n{text}\n')

    def write(self, name, text):
        self.unwritten[name] += text
        if self.attempt(name, append, self.folder / name, self.unwritten[name]):
            self.unwritten[name] = ''

    def draw(self):
        """Draw loss.png, if there is matplotlib."""
        self.attempt('loss.png', plot_losses, self.folder)
        gc.collect()  # figures are in reference cycles, and Python itself may not look for hours

    def attempt(self, what, work, *arguments):
        """Call work; returns whether it succeeded. Of failures one after another the first is
        said."""
        try:
            work(*arguments)
            self.failing.discard(what)
        except Exception as error:  # whatever a disk, a library or its server bring
            if what not in self.failing:
                print(f'{what} failed, training goes on: {first_line(error)}', flush=True)
            self.failing.add(what)
        return what not in self.failing


def append(path, text):
    """Add all of the text to a file, or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode()
    with open(path, 'ab', buffering=0) as file:
        size = file.tell()
        try:
            while data:
                data = data[file.write(data):]
        except OSError:
            file.truncate(size)
            raise


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
                if record := parse_record(line):
                    records[record['step']] = records.get(record['step'], {}) | record
    return list(records.values())


def parse_record(line):
    """The dict of a line of log.jsonl; None for a line that is cut, or has no step."""
    with contextlib.suppress(ValueError, RecursionError):
        record = json.loads(line)
        return record if isinstance(record, dict) and type(record.get('step')) is int else None


def cut_log(path, step):
    """Leave out of a log what came after `step` steps."""
    path.touch()
    temporary = path.with_name(f'{path.name}.tmp')
    with open(path, encoding='utf-8', errors='replace') as file, \
            open(temporary, 'w', encoding='utf-8') as kept:
        for line in file:
            if (record := parse_record(line)) and record['step'] <= step:
                kept.write(line)
    os.replace(temporary, path)


def cut_samples(path, step):
    """Leave out of a file of samples what came after `step` steps."""
    if path.exists():
        whole = path.read_bytes().rpartition(b'\n')[0] + b'\n'  # without a line that was cut short
        parts = re.split(r'(?m)^step (\d+)\n', whole.decode(errors='replace'))
        kept = [f'step {number}\n{text}' for number, text
                in zip(parts[1::2], parts[2::2], strict=True) if int(number) <= step]
        path.with_suffix('.tmp').write_bytes(''.join(kept).encode())
        os.replace(path.with_suffix('.tmp'), path)


def start_wandb(options, folder, tracked):
    """A run of Weights & Biases, which gets the log's numbers too; the run `tracked`, if any."""
    wandb = import_library('wandb', 'wandb_project')
    settings = dataclasses.asdict(options)
    try:
        return wandb.init(project=options.wandb_project, name=folder.name, config=settings,
                          dir=folder, id=tracked, resume='allow' if tracked else None)
    except Exception as error:  # of the library, its process, the network
        raise UserError(f'wandb_project: {first_line(error)}; with WANDB_MODE=offline it needs '
                        'neither account nor network') from None


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


def tell_progress(record, bar, max_steps, seconds_left):
    """The last step's numbers, in the bar or, where there is none to be seen, as a line."""
    step, left = record['step'], int(seconds_left)
    loss = math.nan if record['train_loss'] is None else record['train_loss']
    text = (f'step {step:,}  loss {loss:.4f}  lr {record["lr"]:.1e}  '
            f'{record["tokens_per_second"]:,} tokens/s  {left // 60}:{left % 60:02} left')
    if bar.disable:
        print(text, flush=True)
    bar.n = step if max_steps is not None else min(int(record['seconds']), bar.total)
    bar.set_description_str(text)


def tell_end(folder, step, best_loss, reason):
    """What became of the run, and what to do with it. reason: what stopped it early, or None."""
    folder = short(folder)
    out_dir = f'--out_dir={folder}'
    if reason:
        print(f'stopped by {reason} after step {step:,}; to go on: '
              f'{folio.options.command("train.py", out_dir, "--resume=True")}')
    if (Path(folder) / 'best.pt').exists():
        print(f'best validation loss: {best_loss:.4f}, in {folder}/best.pt')
    picture = Path(folder, 'loss.png')
    print(f'the curve: {picture if picture.exists() else "pip install matplotlib"}; more samples:\n'
          f'{folio.options.command("sample.py", out_dir)}')


# --- the curve -----------------------------------------------------------------------------------

def plot_losses(folder):
    """Draw loss.png, if there is matplotlib: the losses of log.jsonl over tokens."""
    axes = make_axes()
    if axes is None:
        return
    best = draw_losses(axes, read_log(folder, CURVE), 'C0', 'training', 'C1', 'validation')
    if best:
        axes.plot(best['tokens'], best['val_loss'], 'k*', label=f'best: {best["val_loss"]:.4f}')
    save_picture(axes, folder / 'loss.png')


def make_axes():
    """Empty axes for losses over tokens, or None where there is no matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    axes = Figure(figsize=(7, 4.5), layout='constrained').subplots()
    axes.set(xlabel='tokens', ylabel='loss (nats per token)')
    return axes


def draw_losses(axes, records, train_color, train_label, val_color, val_label):
    """Draw both losses of a log; returns the record with the lowest validation loss, if any."""
    evaluated = [record for record in records if 'val_loss' in record]
    axes.plot([record['tokens'] for record in records], [r.get('train_loss') for r in records],
              color=train_color, label=train_label, alpha=0.4, linewidth=0.8)
    axes.plot([record['tokens'] for record in evaluated], [r['val_loss'] for r in evaluated],
              color=val_color, label=val_label, marker='.')
    return min(evaluated, key=lambda record: record['val_loss'], default=None)


def save_picture(axes, path):
    """Write the picture that the axes are in, with its legend."""
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    axes.figure.savefig(path, dpi=150)
