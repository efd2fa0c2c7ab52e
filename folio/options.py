"""How every script reads its options: `python train.py [config/NAME.py ...] [--key=value ...]`.

A script reads the fields of one dataclass, from left to right, and the later wins; a configuration
file is Python whose assignments are options. A field `from_` is the option `--from`.
"""

import ast
import dataclasses
import difflib
import functools
import inspect
import operator
import re
import runpy
import traceback
from pathlib import Path
from types import ModuleType, NoneType
from typing import Literal, NewType, get_args, get_origin

from script import UserError

ROOT = Path(__file__).resolve().parent.parent  # data/, config/ and out/ stand here
Text = NewType('Text', str)  # a text in which a typed \n or \t is a newline or a tab
NANOGPT = {'max_iters': 'max_steps', 'lr_decay_iters': 'max_steps', 'eval_iters': 'eval_tokens',
           'gradient_accumulation_steps': 'batch_size (of a whole step) and micro_batch_size'}


def find(path):
    """A path as the user typed it: from where they are, or else from the folder of the scripts."""
    path = Path(path).expanduser()
    return path if path.exists() or not (ROOT / path).exists() else ROOT / path


def parse(cls, argv):
    """(options, given): argv as an instance of the dataclass cls, and a dict of what was named;
    UserError for an unknown option, a value of the wrong type, a file that can't be run."""
    if {"--help", "-h"} & set(argv):
        raise SystemExit(print(usage(cls)))
    fields, given = {field.name.rstrip('_'): field for field in dataclasses.fields(cls)}, {}
    for where, key, value, typed in assignments(argv):
        if not (field := fields.get(key)):
            near = NANOGPT.get(key) or ''.join(difflib.get_close_matches(key, fields, 1))
            raise UserError(f'{where}: no such option; is it {near or "in --help"}?')
        try:
            given[field.name] = as_type(value, field.type, typed)
        except (ValueError, TypeError, SyntaxError, OverflowError):
            raise UserError(f'{where} must be {describe(field.type)}, not {value!r}') from None
    return cls(**given), given


def assignments(argv):
    """(where, key, value, typed) for each option in argv; typed: a text from the command line."""
    for argument in argv:
        key, equals, text = argument.partition('=')
        if key.startswith('--'):
            where = key if equals else f'{key}=VALUE'
            yield where, key[2:], text if equals else True, bool(equals)
            continue
        try:
            names = runpy.run_path(str(find(argument)))
        except Exception as error:
            if not find(argument).is_file():
                raise UserError(f'{argument}: no such file; options are --key=value') from None
            at = [getattr(error, 'lineno', '?')]  # a SyntaxError's
            at += [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                   if frame.filename == str(find(argument))]
            raise UserError(f'{argument}, line {at[-1]}: {type(error).__name__}: {error}') from None
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
    if type(value) is kind:
        return value
    raise ValueError


def describe(kind):
    return ' or '.join(repr(member) if get_origin(kind) is Literal else describe(member)
                       for member in get_args(kind)) or kind.__name__.removesuffix('Type')


def usage(cls):
    """The help: the script's docstring, then each option with its default and its comment."""
    lines = [inspect.getmodule(cls).__doc__]
    for owner in filter(dataclasses.is_dataclass, cls.__mro__):
        for name, comment in re.findall(r'(?m)^    (\w+): .*?  # (.*)$', inspect.getsource(owner)):
            lines.append(f'  --{name.rstrip("_")}={getattr(cls(), name)}'.ljust(32) + f' {comment}')
    return '\n'.join(lines)
