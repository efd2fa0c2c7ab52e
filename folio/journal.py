"""What people look at in the folder of a run, out/NAME/.

    log.jsonl   a JSON object for each step
    samples.txt the sample of each evaluation, indented, after a line with its step
    loss.png    the losses over the tokens seen

Weights & Biases gets the log's numbers too, if the options name a project there.
"""

import contextlib
import dataclasses
import json
import os
import re
from pathlib import Path

import folio.options
from folio.cli import UserError, first_line, short


def open_journal(folder, options, step, tracked=None):
    """Make the folder of a run; returns what else logs it, or None. Log and samples of a run that
    goes on after `step` steps lose what came later. tracked: the id of its run of Weights &
    Biases, which goes on too."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = [record for record in read_log(folder) if record['step'] <= step]
    write_log(folder, kept, name='log.jsonl.tmp')
    os.replace(folder / 'log.jsonl.tmp', folder / 'log.jsonl')
    cut_samples(folder, step)
    return start_wandb(options, folder, tracked) if options.wandb_project else None


def read_log(folder):
    """The records of log.jsonl, as dicts; a line that a crash cut short is left out."""
    path, records = folder / 'log.jsonl', []
    for line in path.read_text(encoding='utf-8').splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def write_log(folder, records, tracker=None, name='log.jsonl'):
    """Add the records to the log, and to what else tracks the run."""
    with open(folder / name, 'a', encoding='utf-8') as file:
        file.writelines(json.dumps(record) + '\n' for record in records)
    for record in records if tracker else []:
        tracker.log(record, step=record['step'])


def write_sample(folder, step, text):
    """Add an indented text to samples.txt, its newlines as they are."""
    with open(folder / 'samples.txt', 'a', encoding='utf-8', newline='') as file:
        file.write(f'step {step}\n{text}\n')


def cut_samples(folder, step):
    """Leave out of samples.txt what came after `step` steps."""
    path = folder / 'samples.txt'
    if path.exists():
        parts = re.split(r'(?m)^step (\d+)\n', path.read_bytes().decode(errors='replace'))
        kept = [f'step {number}\n{text}' for number, text
                in zip(parts[1::2], parts[2::2], strict=True) if int(number) <= step]
        path.with_suffix('.tmp').write_bytes(''.join(kept).encode())
        os.replace(path.with_suffix('.tmp'), path)


def start_wandb(options, folder, tracked):
    """A run of Weights & Biases, which gets the log's numbers too; the run `tracked`, if any."""
    try:
        import wandb
    except ImportError:
        raise UserError('wandb_project: pip install wandb') from None
    settings = dataclasses.asdict(options)
    try:
        return wandb.init(project=options.wandb_project, name=folder.name, config=settings,
                          dir=folder, id=tracked, resume='allow' if tracked else None)
    except wandb.errors.Error as error:
        raise UserError(f'wandb_project: {first_line(error)}; with WANDB_MODE=offline it needs '
                        'neither account nor network') from None


# --- what a person reads -------------------------------------------------------------------------

def tell_progress(record, bar, max_steps, seconds_left):
    """The last step's numbers, in the bar or, where there is none to be seen, as a line."""
    step, left = record['step'], int(seconds_left)
    text = (f'step {step:,}  loss {record["train_loss"]:.4f}  lr {record["lr"]:.1e}  '
            f'{record["tokens_per_second"]:,} tokens/s  {left // 60}:{left % 60:02} left')
    if bar.disable:
        print(text, flush=True)
    bar.n = step if max_steps is not None else min(int(record['seconds']), bar.total)
    bar.set_description_str(text)


def tell_end(folder, step, best_loss, reason):
    """What became of the run, and what to do with it. reason: what stopped it early, or None."""
    folder, here = short(folder), short(folio.options.ROOT)
    if reason:
        print(f'stopped by {reason} after step {step:,}; '
              f'to go on: python {Path(here, "train.py")} --out_dir={folder} --resume=True')
    if best_loss < float('inf'):
        print(f'best validation loss: {best_loss:.4f}, in {folder}/best.pt')
    picture = Path(folder, 'loss.png')
    print(f'the curve: {picture if picture.exists() else "pip install matplotlib"}; more samples:\n'
          f'python {Path(here, "sample.py")} --out_dir={folder}')


# --- the curve -----------------------------------------------------------------------------------

def plot_losses(folder):
    """Draw loss.png, if there is matplotlib: the losses of log.jsonl over tokens."""
    axes = make_axes()
    if axes is None:
        return
    best = draw_losses(axes, read_log(folder), 'C0', 'training', 'C1', 'validation')
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
    axes.plot([record['tokens'] for record in records], [r['train_loss'] for r in records],
              color=train_color, label=train_label, alpha=0.4, linewidth=0.8)
    axes.plot([record['tokens'] for record in evaluated], [r['val_loss'] for r in evaluated],
              color=val_color, label=val_label, marker='.')
    return min(evaluated, key=lambda record: record['val_loss'], default=None)


def save_picture(axes, path):
    """Write the picture that the axes are in, with its legend."""
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    axes.figure.savefig(path, dpi=150)
