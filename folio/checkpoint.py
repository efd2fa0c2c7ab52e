"""Checkpoints: dicts that torch.load(weights_only=True) reads, written whole or not at all.

    ckpt.pt     the state of the run, which --resume=True goes on from
    best.pt     the model with the lowest validation loss, without the optimizers' state

    save({'model': model.state_dict(), 'config': ..., 'tokenizer': ...}, Path('out/a/ckpt.pt'))
    state = load('out/a')
"""

import dataclasses
import itertools
import os
from pathlib import Path

import torch

from folio.cli import UserError, first_line
from folio.options import find
from folio.tokenizer import name_of, same_tokenizer


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


def load(path):
    """The dict in a file, or in a folder's best.pt, or else its ckpt.pt; tensors are on the CPU.
    UserError for a file that is missing, cut or no checkpoint."""
    path = find(path)
    if path.is_dir():
        path = path / 'best.pt' if (path / 'best.pt').exists() else path / 'ckpt.pt'
    if not path.exists():
        raise UserError(f'{path}: there is no such checkpoint; train.py and tools/convert.py '
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


def last_good(folder):
    """What a message calls the newest checkpoint of a folder."""
    path = folder / 'ckpt.pt'
    return f'{path} (step {load(path)["step"]})' if path.exists() else 'none'


# --- going on ------------------------------------------------------------------------------------

def check_vocabulary(dataset, meta, spec, vocab_size):
    """UserError if a data set with this meta.json is none for a model with the tokenizer `spec`
    (None: unknown) and this vocabulary."""
    ours = meta['tokenizer']
    if ours and spec and not same_tokenizer(ours, spec):
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
    taken = [name for name in names if name in saved and (name in fixed or name not in given)]
    return dataclasses.replace(options, **{name: saved[name] for name in taken})


def move_old_run(folder):
    """Give the folder another name, out/NAME.1, .2, ..., if there is a run in it, and say so."""
    if any((folder / name).exists() for name in ('ckpt.pt', 'best.pt', 'log.jsonl')):
        number = next(n for n in itertools.count(1) if not Path(f'{folder}.{n}').exists())
        print(f'the run that was in {folder} is now {folder.rename(f"{folder}.{number}")}')
