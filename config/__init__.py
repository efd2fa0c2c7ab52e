"""How every script reads its options: `python train.py [config/NAME.py ...] [--key=value ...]`.

A script's options are the fields of one dataclass. Arguments are read from left to right, the later
wins; a configuration file is Python whose assignments are options. A field `from_` is `--from`.
"""

import ast
import contextlib
import dataclasses
import difflib
import functools
import inspect
import operator
import os
import re
import runpy
import sys
import traceback
from pathlib import Path
from types import ModuleType, NoneType
from typing import Literal, NewType, get_args, get_origin

ROOT = Path(__file__).resolve().parent.parent  # data/, config/ and out/ stand here
Text = NewType('Text', str)  # a text in which a typed \n or \t is a newline or a tab
NANOGPT = {'max_iters': 'max_steps', 'warmup_iters': 'warmup_steps', 'eval_iters': 'eval_tokens',
           'lr_decay_iters': 'max_steps, where the decay ends', 'wandb_log': 'wandb_project',
           'gradient_accumulation_steps': 'batch_size (a step), micro_batch_size (a forward pass)'}


class UserError(Exception):
    """What a user can mend, said in one line; printed by rank 0 only, unless any_rank is set."""
    any_rank = False


def run(main):
    """Call main(argv) as a script; a UserError ends it with its line and exit code 1."""
    sys.stdout.reconfigure(errors='replace')  # a model may say what a terminal can't show
    try:
        sys.exit(main(sys.argv[1:]))
    except BrokenPipeError:  # nobody reads on, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except (UserError, OSError) as error:
        rank_0 = os.environ.get('RANK', '0') == '0'
        sys.exit(f'error: {error}' if rank_0 or getattr(error, 'any_rank', True) else 1)
    except KeyboardInterrupt:
        sys.exit(130)


def find(path):
    """A path as the user typed it: from where they are, or else from the folder of the scripts."""
    path = Path(path).expanduser()
    return path if path.exists() or not (ROOT / path).exists() else ROOT / path


def short(path):
    """A path as a user would type it: from where they are, if it lies below."""
    with contextlib.suppress(ValueError):  # another drive
        path = min(os.path.relpath(path), str(path), key=lambda text: text.startswith('..'))
    return str(path)


def parse(cls, argv):
    """(options, given): argv as an instance of the dataclass cls, and a dict of what was named.

    Raises UserError for an unknown option, a value of the wrong type, a file that can't be run.
    """
    if '--help' in argv or '-h' in argv:
        sys.exit(print(usage(cls)))
    fields, given = {field.name.rstrip('_'): field for field in dataclasses.fields(cls)}, {}
    for where, key, value, typed in assignments(argv):
        if key not in fields:
            near = NANOGPT.get(key) or ''.join(difflib.get_close_matches(key, fields, 1))
            raise UserError(f'{where}: no such option; is it {near or "in --help"}?')
        try:
            given[fields[key].name] = as_type(value, fields[key].type, typed)
        except (ValueError, TypeError, SyntaxError, OverflowError):
            kind = describe(fields[key].type)
            raise UserError(f'{where} must be {kind}, not {value!r}') from None
    return cls(**given), given


def assignments(argv):
    """(where, key, value, typed) for each option in argv; typed: a text from the command line."""
    for argument in argv:
        key, equals, text = argument.partition('=')
        if key.startswith('--'):
            yield key, key[2:], text if equals else True, bool(equals)
            continue
        if not find(argument).is_file():
            raise UserError(f'{argument}: no such file')
        try:
            names = runpy.run_path(str(find(argument)))
        except Exception as error:
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                     if frame.filename == str(find(argument))]
            line = lines[-1] if lines else getattr(error, 'lineno', None)
            raise UserError(f'{argument}, line {line}: {type(error).__name__}: {error}') from None
        for key, value in names.items():
            if not (key.startswith('_') or isinstance(value, ModuleType) or callable(value)):
                yield f'{argument}: {key}', key, value, False


def as_type(value, kind, typed):
    """The value as the type kind; raises ValueError, TypeError or SyntaxError if it isn't one."""
    members = get_args(kind)
    if get_origin(kind) is Literal:
        return members[[str(member) for member in members].index(str(value))]
    if get_origin(kind) is list:
        items = value.split(',') if typed else [value] if isinstance(value, str) else value
        return [as_type(item, members[0], typed) for item in items]
    for member in sorted(members, key=lambda member: member is not NoneType):  # X | None
        try:
            return as_type(value, member, typed)
        except (ValueError, TypeError, SyntaxError):
            pass
    if kind in (str, Text) and isinstance(value, str):
        return value.replace(r'\n', '\n').replace(r'\t', '\t') if kind is Text and typed else value
    if typed:
        value = {'true': 'True', 'false': 'False'}.get(value, value)
        value = functools.reduce(operator.mul, map(ast.literal_eval, value.split('*')))
    if {type(value), kind} == {int, float} and value == kind(value):
        return kind(value)
    if type(value) is not kind:
        raise ValueError
    return value


def describe(kind):
    return ' or '.join(repr(member) if get_origin(kind) is Literal else describe(member)
                       for member in get_args(kind)) or kind.__name__.removesuffix('Type')


def usage(cls):
    """The help: the script's docstring, then each option with its default and its comment."""
    lines = [inspect.getmodule(cls).__doc__]
    for owner in filter(dataclasses.is_dataclass, cls.__mro__):
        source = inspect.getsource(owner)
        for name, comment in re.findall(r'^    (\w+): .*?  # (.*)$', source, re.MULTILINE):
            lines.append(f'  --{name.rstrip("_")}={getattr(cls(), name)}'.ljust(32) + f' {comment}')
    return '\n'.join(lines)
