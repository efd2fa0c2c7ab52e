"""Checkpoints: dicts that torch.load(weights_only=True) reads, written whole or not at all.

    ckpt.pt       the state of the run, which --resume=True goes on from
    ckpt.prev.pt  the one before it, for the day on which ckpt.pt can't be read
    best.pt       the model with the lowest validation loss, without the optimizers' state

    save({'model': model.state_dict(), 'config': ..., 'tokenizer': ...}, Path('out/a/ckpt.pt'))
    state = load('out/a')
"""

import contextlib
import dataclasses
import functools
import itertools
import os
import pickle
import platform
import subprocess
import threading
import zipfile
from pathlib import Path

import torch

import folio.options
from folio.cli import UserError, first_line, short
from folio.options import checked, find
from folio.shard import whole_tensor
from folio.tokenizer import name_of, same_tokenizer

RESUMABLE = ('ckpt.pt', 'ckpt.prev.pt')
RUN_FILES = (*RESUMABLE, 'best.pt', 'log.jsonl')  # one of which makes a folder a run's
OTHER_FILES = ('samples.txt', 'loss.png', 'tokenizer.json')
NEEDED = {'model', 'config', 'tokenizer'}
KINDS = {'step': int, 'sequences': int, 'seconds': int | float, 'evaluated': int,
         'model': dict, 'config': dict, 'tokenizer': dict | None, 'optimizers': list,
         'scaler': dict | None, 'best_loss': float, 'tracker': str | None, 'data': dict | None,
         'versions': dict}
COUNTS = ('step', 'sequences', 'seconds', 'evaluated')
OLDER = {'token_shift': False, 'head_size': None}  # options that older files lack: their meaning


def save(state, path):
    """Write the dict to path, flushed to the disk; a ckpt.pt that was there becomes ckpt.prev.pt.
    If that fails, UserError, and what was there is untouched."""
    temporary = path.with_name(f'{path.name}.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, 'wb') as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if path.name == 'ckpt.pt' and zipfile.is_zipfile(path):  # else it is cut: no one to keep
            os.replace(path, path.with_name('ckpt.prev.pt'))
        os.replace(temporary, path)
        flush_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch says RuntimeError where the disk is full
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f'{path} could not be saved (is the disk full?), what was there is '
                        f'untouched: {first_line(error)}') from None


def flush_folder(folder):
    """Have the names in a folder written to the disk, where a folder can be opened."""
    with contextlib.suppress(OSError):  # Windows, and mounts that have no such thing
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Writer:
    """Saves checkpoints in the background, one after another; `failed` has the Paths whose latest
    save failed. A process that keeps none gives its part of what is sharded."""

    def __init__(self, keeps=True):
        self.keeps, self.thread, self.failed = keeps, threading.Thread(), set()

    def save(self, states, afterwards):
        """Save the states, a dict by Path, as they are now, then call afterwards(); returns when
        they are copied."""
        self.wait()
        copies = copied(states, {}, 'cpu' if self.keeps else 'meta')
        if self.keeps:
            self.thread = threading.Thread(target=self.work, args=(copies, afterwards), daemon=True)
            self.thread.start()

    def work(self, states, afterwards):
        for path, state in states.items():
            try:
                save(state, path)
                self.failed.discard(path)
            except Exception as error:  # whatever a disk brings: no thread may end unheard
                self.failed.add(path)
                print(f'error: {first_line(error)}', flush=True)
        afterwards()

    def wait(self):
        """Return when all is written."""
        if self.thread.is_alive():
            self.thread.join()


def copied(value, copies, device='cpu'):
    """The same dicts and lists, with their tensors whole and copied to a device, where `meta` keeps
    nothing; a tensor that is in them twice, as tied weights are, is copied once. copies: those made
    so far, by id."""
    if isinstance(value, dict):
        return {key: copied(item, copies, device) for key, item in value.items()}
    if isinstance(value, list):
        return [copied(item, copies, device) for item in value]
    if not isinstance(value, torch.Tensor):
        return value
    if id(value) not in copies:
        copies[id(value)] = whole_tensor(value).to(device, copy=True)
    return copies[id(value)]


@functools.cache
def versions():
    """What makes a checkpoint, a dict: the git commit, if known, Python, torch and the machine."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else (
        torch.backends.cpu.get_cpu_capability())
    try:
        commit = subprocess.run(['git', 'describe', '--always', '--dirty', '--abbrev=40'],
                                cwd=folio.options.ROOT, capture_output=True, text=True).stdout
    except OSError:  # there is no git
        commit = ''
    return {'git': commit.strip() or None, 'python': platform.python_version(),
            'torch': str(torch.__version__), 'machine': f'{platform.machine()} {device}'}


# --- reading -------------------------------------------------------------------------------------

def load(path):
    """The dict in a file, or in a folder's best.pt, or else its ckpt.pt. UserError for a file that
    is missing, cut or no checkpoint."""
    path = find(path)
    paths = [path / name for name in ('best.pt', *RESUMABLE)] if path.is_dir() else [path]
    if not any(path.is_file() for path in paths):
        runs = sorted({file.parent.name for file in (folio.options.ROOT / 'out').glob('*/*.pt')})
        raise UserError(f'{short(path)}: there is no such checkpoint; in out/ there are: '
                        f'{", ".join(runs) or "none, for train.py makes them"}')
    return load_first(paths)


def load_first(paths):
    """The dict in the first of the files that is there and whole; says so if one isn't."""
    there = [path for path in paths if path.is_file()]
    for path, following in itertools.pairwise(there):
        try:
            return read(path)
        except (UserError, OSError) as error:
            print(f'{error}; {following.name} is taken in its place')
    return read(there[-1])


def read(path):
    """The dict in a file; UserError if it is cut, lacks what all checkpoints have, or has a value
    of another type than train.py gives it, or a number that counts nothing."""
    with damaged(path):
        state = unpickle(path)
        if 'model_args' in state:
            raise UserError(f'{short(path)} is a checkpoint of nanoGPT: '
                            f'{folio.options.command("tools/convert.py", f"--from={path}")}')
        wrong = NEEDED - state.keys()
        wrong |= {name for name in state if not isinstance(state[name], KINDS.get(name, object))}
        wrong |= {name for name in COUNTS if not 0 <= state.get(name, 0) < 2 ** 62}
        if wrong:
            raise ValueError(f'{", ".join(sorted(wrong))}: missing, or of the wrong type')
    return state | {'config': OLDER | state['config']}


def unpickle(path):
    """What is in a file that torch.save wrote; its tensors, on the CPU, are parts of the file,
    which take memory as they are read. ValueError or others for code, or if it is damaged: torch
    makes none that grows when it is read, and does not look at the checksums."""
    with zipfile.ZipFile(path) as file:
        size = sum(item.file_size for item in file.infolist())
        if size > path.stat().st_size or file.testzip():
            raise ValueError('its checksums are wrong, or it grows')
    try:  # Windows would not replace a file that is mapped
        return torch.load(path, map_location='cpu', weights_only=True, mmap=os.name != 'nt')
    except pickle.UnpicklingError:
        raise ValueError('it holds pickled code, which is not run, or is damaged') from None


@contextlib.contextmanager
def damaged(path, how='is damaged, or was not made by folio'):
    """Turn what building a model or a tokenizer raises, for a file whose content is not what it
    should be, into a UserError that says how it is."""
    try:
        yield
    except (UserError, OSError, MemoryError, GeneratorExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        raise UserError(f'{path} {how}: {type(error).__name__}: {first_line(error)}') from None


# --- going on ------------------------------------------------------------------------------------

def resume(options, given, folder, shape):
    """(options, state) of the run in the folder; `shape` names the options of the model's."""
    state = load_first([folder / name for name in RESUMABLE])
    if 'optimizers' not in state:
        raise UserError(f'{folder} has weights alone: --init_from starts a run with them')
    fixed = [*shape, 'dataset', 'seed', 'optimizer', 'batch_size', 'batch_size_start',
             'batch_ramp_tokens']
    names = [name for name in vars(options) if name != 'out_dir']
    return inherit(options, given, state['config'], fixed, names), state


def start_from(options, given, folder, shape):
    """(options, state) of a new run that starts from the weights of --init_from."""
    source = find(options.init_from).resolve()
    if source.name in ('scratch', 'resume') and not source.exists():
        raise UserError(f'init_from={source.name}: a run starts from scratch unless told '
                        'otherwise, and --resume=True goes on with one')
    if folder in (source, source.parent):
        raise UserError(f'init_from={options.init_from} is in the folder of the new run; name '
                        'another out_dir')
    state = load(source)
    fixed = [name for name in shape if name != 'block_size']
    options = inherit(options, given, state['config'], fixed, shape)
    largest = state['config'].get('block_size') or 0
    if options.block_size > largest:
        raise UserError(f'block_size={options.block_size} is above the checkpoint\'s {largest}')
    return options, {name: state[name] for name in NEEDED}


def inherit(options, given, saved, fixed, names):
    """The options, with a checkpoint's (the dict `saved`) for those of `names` that were not given.
    UserError names each one in `fixed` that was given and contradicts."""
    saved = {field.name: checked(f'the {field.name} of the checkpoint', saved[field.name], field,
                                 typed=False)
             for field in dataclasses.fields(options)
             if field.name in names and field.name in saved}
    wrong = [f'{name}={given[name]} (there it is {saved.get(name)})' for name in fixed
             if given.get(name) not in (None, saved.get(name))]
    if wrong:
        raise UserError(f'the checkpoint contradicts {", ".join(wrong)}')
    taken = [name for name in saved if name in fixed or name not in given]
    return dataclasses.replace(options, **{name: saved[name] for name in taken})


def check_vocabulary(dataset, meta, spec, vocab_size):
    """UserError if a data set with this meta.json is none for a model with the tokenizer `spec`
    and this vocabulary; None is an unknown tokenizer, which is said."""
    ours = meta['tokenizer']
    if ours and not spec:
        print(f'warning: the checkpoint has no tokenizer, so that of {dataset} is not compared')
    with damaged(f'the tokenizer of {dataset} or of the checkpoint'):
        if ours and spec and not same_tokenizer(ours, spec):
            raise UserError(f'the tokens of {dataset} are {name_of(ours)}, those of the '
                            f'checkpoint {name_of(spec)}, and not the same')
    if vocab_size < meta['vocab_size']:
        raise UserError(f'vocab_size={vocab_size} is below the {meta["vocab_size"]} of {dataset}')


# --- the folder of a run -------------------------------------------------------------------------

def move_old_run(folder):
    """Rename the folder, if there is a run in it, to out/NAME.1, .2, ..., and say so. Of one with
    other things in it, a mount, or where the user is, the run's files move, its checkpoint last."""
    if not any((folder / name).exists() for name in RUN_FILES):
        return
    folder = folder.resolve()  # not a link, but what it leads to
    inside = os.path.ismount(folder) or Path.cwd().is_relative_to(folder)
    name = folder / folder.name if inside else folder
    numbered = (Path(f'{name}.{number}') for number in itertools.count(1))
    moved = next(path for path in numbered if not path.exists())
    if not inside and {path.name for path in folder.iterdir()} <= {*RUN_FILES, *OTHER_FILES}:
        folder.rename(moved)
    else:
        moved.mkdir()
        for name in (*OTHER_FILES, *reversed(RUN_FILES)):
            with contextlib.suppress(FileNotFoundError):
                (folder / name).rename(moved / name)
    print(f'the run that was in {short(folder)} is now {short(moved)}')
