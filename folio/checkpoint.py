"""The folder of a run, out/NAME/: what train.py leaves there and the other scripts read.

    ckpt.pt     the state of the run, which --resume=True goes on from
    best.pt     the model with the lowest validation loss, without the optimizers' state
    log.jsonl   a JSON object for each step
    samples.txt the sample of each evaluation, indented, after a line with its step
    loss.png    the losses over the tokens seen

Checkpoints are dicts that torch.load(weights_only=True) reads, written whole or not at all.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import re
from pathlib import Path

import torch

import config
from machine import first_line
from model import GPT, GPTConfig
from script import UserError
from tokenizer import Tokenizer, name_of

SHAPE = [field.name for field in dataclasses.fields(GPTConfig)
         if field.name not in ('dropout', 'recompute')]


def save(state, path):
    """Write the dict to path; if that fails, UserError, and what was there is untouched."""
    temporary = path.with_name(f'{path.name}.tmp')
    try:
        with open(temporary, 'wb') as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch says RuntimeError where the disk is full
        temporary.unlink(missing_ok=True)
        kept = '; the one before it is untouched' if path.exists() else ''
        raise UserError(f'{path} could not be saved (is the disk full?): {first_line(error)}'
                        f'{kept}') from None


def save_run(folder, best, optimizers, scaler, state):
    """Write ckpt.pt, and the model alone as best.pt if it is the best so far; draw loss.png."""
    if best:
        save(state, folder / 'best.pt')
    states = [optimizer.state_dict() for optimizer in optimizers]
    save(state | {'optimizers': states, 'scaler': scaler.state_dict()}, folder / 'ckpt.pt')
    plot(folder)


def load(path):
    """The dict in a file, or in a folder's best.pt, or else its ckpt.pt; tensors are on the CPU."""
    path = config.find(path)
    if path.is_dir():
        path = path / 'best.pt' if (path / 'best.pt').exists() else path / 'ckpt.pt'
    if not path.exists():
        raise UserError(f'{path}: there is no such checkpoint; train.py and convert.py '
                        'make them')
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # whatever a cut or foreign file makes the reader raise
        if 'GLOBAL' in str(error):  # what torch calls a function or class
            raise UserError(f'{path} holds pickled code, which is not run') from None
        raise UserError(f'{path} is no whole checkpoint ({type(error).__name__})') from None
    if not isinstance(state, dict) or not {'model', 'config', 'tokenizer'} <= state.keys():
        raise UserError(f'{path} is not a checkpoint of train.py')
    return state


def load_model(path):
    """(model, tokenizer or None) of a checkpoint, on the CPU, in eval mode."""
    return build(load(path))


def build(state):
    """The same of a checkpoint's dict."""
    model = GPT(GPTConfig(**{name: state['config'][name] for name in SHAPE}))
    model.load_state_dict(state['model'])
    return model.eval(), Tokenizer(state['tokenizer']) if state['tokenizer'] else None


def must_fit(dataset, meta, spec, vocab_size):
    """UserError if a data set with this meta.json is none for a model with the tokenizer `spec`
    (None: unknown) and this vocabulary."""
    ours = meta['tokenizer']
    if ours and spec and ours != spec:
        raise UserError(f'the tokens of {dataset} are {name_of(ours)}, those of the checkpoint '
                        f'{name_of(spec)}')
    if vocab_size < meta['vocab_size']:
        raise UserError(f'vocab_size={vocab_size} is below the {meta["vocab_size"]} of {dataset}')


def inherit(options, given, saved, fixed, names):
    """The options, with a checkpoint's (the dict `saved`) for those of `names` that were not given.

    To go on with a run, names are all and fixed those that must stay; to start from its weights,
    both are the shape. UserError names each one in `fixed` that was given and contradicts.
    """
    wrong = [f'{name}={given[name]} (there it is {saved.get(name)})' for name in fixed
             if given.get(name) not in (None, saved.get(name))]
    if wrong:
        raise UserError(f'the checkpoint contradicts {", ".join(wrong)}')
    return dataclasses.replace(options, **{name: saved[name] for name in names if name in saved
                                           and (name in fixed or name not in given)})


def open_folder(folder, options, step, tracked=None):
    """Make the folder of a run; returns what else logs it, or None. A folder that is there gets
    another name; or, if its run goes on after `step` steps, its log and samples lose what came
    later. tracked: the id of its run of Weights & Biases, which goes on too."""
    if not options.resume:
        make_room(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kept = [record for record in read_log(folder) if record['step'] <= step]
    write_log(folder, kept, name='log.jsonl.tmp')
    os.replace(folder / 'log.jsonl.tmp', folder / 'log.jsonl')
    cut_samples(folder, step)
    return start_wandb(options, folder, tracked) if options.wandb_project else None


def make_room(folder):
    """Give the folder another name if there is a run in it."""
    if any((folder / name).exists() for name in ('ckpt.pt', 'best.pt', 'log.jsonl')):
        number = next(n for n in itertools.count(1) if not Path(f'{folder}.{n}').exists())
        print(f'the run that was in {folder} is now {folder.rename(f"{folder}.{number}")}')


def read_log(folder):
    """The records of log.jsonl, as dicts; a line that a crash cut short is left out."""
    path, records = folder / 'log.jsonl', []
    for line in path.read_text(encoding='utf-8').splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def write_log(folder, records, tracker=None, name='log.jsonl'):
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


def refuse_nan(numbers, record, folder):
    """UserError if one of the numbers (by name) of the record's step is not finite."""
    for name, number in numbers.items():
        if number is not None and not math.isfinite(number):
            path = folder / 'ckpt.pt'
            good = f'{path} (step {load(path)["step"]})' if path.exists() else 'none'
            raise UserError(f'step {record["step"]}: the {name} is {number} at learning rate '
                            f'{record["lr"]:.1e}; the last good checkpoint: {good}')


def plot(folder):
    """Draw loss.png, if there is matplotlib: the losses of log.jsonl over tokens."""
    if not (axes := make_axes()):
        return
    best = draw(axes, read_log(folder), 'C0', 'training', 'C1', 'validation')
    if best:
        axes.plot(best['tokens'], best['val_loss'], 'k*', label=f'best: {best["val_loss"]:.4f}')
    finish(axes, folder / 'loss.png')


def plot_runs(logs, path):
    """Draw the losses of several runs (name: records); False where there is no matplotlib."""
    if not (axes := make_axes()):
        return False
    for i, (name, records) in enumerate(logs.items()):
        best = draw(axes, records, f'C{i}', None, f'C{i}', name)
        axes.plot(best['tokens'], best['val_loss'], '*', color=f'C{i}', markersize=10)
    try:
        finish(axes, path)
    except (OSError, ValueError) as error:  # ValueError: an unknown kind of picture
        raise UserError(f'{path} could not be drawn: {error}') from None
    return True


def make_axes():
    """Empty axes for losses over tokens, or None where there is no matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    axes = Figure(figsize=(7, 4.5), layout='constrained').subplots()
    axes.set(xlabel='tokens', ylabel='loss (nats per token)')
    return axes


def draw(axes, records, train_color, train_label, val_color, val_label):
    """Draw both losses of a log; returns the record with the lowest validation loss, if any."""
    evaluated = [record for record in records if 'val_loss' in record]
    axes.plot([record['tokens'] for record in records], [r['train_loss'] for r in records],
              color=train_color, label=train_label, alpha=0.4, linewidth=0.8)
    axes.plot([record['tokens'] for record in evaluated], [r['val_loss'] for r in evaluated],
              color=val_color, label=val_label, marker='.')
    return min(evaluated, key=lambda record: record['val_loss'], default=None)


def finish(axes, path):
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    axes.figure.savefig(path, dpi=150)
