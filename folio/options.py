"""How every script reads its options: `python train.py [config/NAME.py ...] [--key=value ...]`.

A script reads the fields of one dataclass, from left to right, and the later wins. A configuration
file is Python whose assignments are options. A field `from_` is the option `--from`.

    @dataclass
    class SampleConfig:
        out_dir: InPath = 'out/stdlib'  # what --help says of it
        top_k: Annotated[int | None, '>= 1'] = None  # a bound, which is checked and shown
"""

import ast
import dataclasses
import difflib
import functools
import inspect
import operator
import os
import re
import runpy
import textwrap
import traceback
from pathlib import Path
from types import ModuleType, NoneType
from typing import Annotated, Literal, NewType, get_args, get_origin

from folio.cli import UserError

ROOT = Path(__file__).resolve().parent.parent  # data/, config/ and out/ stand here
Text = NewType('Text', str)  # a text in which a typed \n or \t is a newline or a tab
InPath = NewType('InPath', str)  # of what is only read or gone on with
OutPath = NewType('OutPath', str)  # of what is made
NANOGPT = {'max_iters': 'max_steps', 'lr_decay_iters': 'max_steps', 'eval_iters': 'eval_tokens',
           'gradient_accumulation_steps': 'batch_size (of a whole step) and micro_batch_size'}
COMPARISONS = {'>=': operator.ge, '>': operator.gt, '<=': operator.le, '<': operator.lt}
REFUSALS = (ValueError, TypeError, SyntaxError, OverflowError, MemoryError, RecursionError)


def find(path):
    """A path as the user typed it: from where they are, or else from the folder of the scripts."""
    path = Path(os.path.expanduser(path))  # which leaves a ~ that means nobody as it is
    return path if path.exists() or not (ROOT / path).exists() else ROOT / path


def parse(cls, argv):
    """(options, given): argv as an instance of the dataclass cls, and a dict of what was named.

    UserError for an unknown option, a value of the wrong type or out of bounds, a file that can't
    be run. `--help` prints the options and ends the script.
    """
    if {'--help', '-h'} & set(argv):
        print(usage(cls))
        raise SystemExit
    fields = {field.name.rstrip('_'): field for field in dataclasses.fields(cls)}
    given = {}
    for where, key, value, typed in assignments(argv):
        if key not in fields:
            near = NANOGPT.get(key) or ''.join(difflib.get_close_matches(key, fields, 1))
            raise UserError(f'{where}: no such option; is it {near or "in --help"}?')
        given[fields[key].name] = checked(where, value, fields[key], typed)
    return cls(**given), given


def checked(where, value, field, typed):
    """The value, which stands where the text `where` says, as the type of a dataclass's field;
    UserError if it is of another type, or out of bounds."""
    kind, bounds = split_bounds(field.type)
    try:
        value = as_type(value, kind, typed)
    except REFUSALS:
        raise UserError(f'{where} must be {describe(kind)}, not {shown(value)}') from None
    check_bounds(field.name.rstrip('_'), value, bounds)
    return value


def shown(value):
    """A value as a message shows it."""
    try:
        return f'{value!r:.80}'
    except Exception:  # an integer may be too long to be printed, and a class has its own way
        return f'this {type(value).__name__}'


def assignments(argv):
    """(where, key, value, typed) for each option in argv; typed: a text from the command line."""
    for argument in argv:
        key, equals, text = argument.partition('=')
        if key.startswith('--'):
            where = key if equals else f'{key}=VALUE'
            yield where, key[2:], text if equals else True, bool(equals)
        else:
            for key, value in run_file(argument).items():
                yield f'{argument}: {key}', key, value, False


def run_file(argument):
    """The options that a configuration file assigns, a dict; UserError where it can't be run."""
    path = find(argument)
    if not path.is_file():
        raise UserError(f'{argument}: no such file; options are --key=value')
    try:
        names = runpy.run_path(str(path))
    except Exception as error:  # whatever the user's code raises
        line = line_of(error, path)
        hint = ''
        if re.search("'(config|script)'", str(error)):  # modules that configurations once used
            hint = ("; relative paths in a configuration are relative to folio's folder by "
                    "themselves: write out_dir = 'out/NAME', without an import")
        raise UserError(f'{argument}, line {line}: {type(error).__name__}: {error}{hint}') from None
    return {key: value for key, value in names.items()
            if not (key.startswith('_') or isinstance(value, ModuleType) or callable(value))}


def line_of(error, path):
    """The line of the file `path` where an exception arose."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
             if frame.filename == str(path)]
    return lines[-1] if lines else getattr(error, 'lineno', '?')  # a SyntaxError's


# --- types ---------------------------------------------------------------------------------------

def split_bounds(kind):
    """(type, bounds) of a field's type: Annotated[int, '>= 1'] is (int, ('>= 1',))."""
    if get_origin(kind) is Annotated:
        return kind.__origin__, kind.__metadata__
    return kind, ()


def check_bounds(name, value, bounds):
    """UserError if a number is not within bounds such as '>= 1'."""
    for bound in bounds:
        comparison, limit = bound.split()
        if value is not None and not COMPARISONS[comparison](value, ast.literal_eval(limit)):
            raise UserError(f'{name} must be {" and ".join(bounds)}, not {value}')


def as_type(value, kind, typed):
    """The value as the type `kind`; raises one of REFUSALS if it isn't one. typed: it is a text
    from the command line; else a configuration file's value, whose relative paths are ROOT's."""
    kind, members = split_bounds(kind)[0], get_args(kind)
    if get_origin(kind) is Literal:
        return members[[str(member) for member in members].index(str(value))]
    if get_origin(kind) is list:
        items = value.split(',') if typed else [value] if isinstance(value, str) else value
        return [as_type(item, members[0], typed) for item in items]
    if members:
        return as_union(value, members, typed)
    if kind in (str, Text, InPath, OutPath):
        return as_text(value, kind, typed)
    return as_number(value, kind, typed)


def as_union(value, members, typed):
    """The value as the first type in `members` that takes it, None before all."""
    for member in sorted(members, key=lambda member: member is not NoneType):
        try:
            return as_type(value, member, typed)
        except REFUSALS:
            pass
    raise ValueError


def as_text(value, kind, typed):
    if not isinstance(value, str):
        raise TypeError
    if kind is not Text and b'\0' in os.fsencode(value):  # no file has such a name
        raise ValueError
    if kind is Text and typed:
        return value.replace(r'\n', '\n').replace(r'\t', '\t')
    if kind in (InPath, OutPath) and not value:
        raise ValueError
    if kind in (InPath, OutPath) and not typed and value != '-':
        return str(ROOT / os.path.expanduser(value))
    return value


def as_number(value, kind, typed):
    """The value as an int, a float, a bool or None; a typed one may be a product, as 8*4."""
    if typed:
        value = {'true': 'True', 'false': 'False'}.get(value, value)
        value = functools.reduce(operator.mul, map(ast.literal_eval, value.split('*')))
    if type(value) in (int, float) and not abs(value) < 2 ** 63:  # nor is NaN
        raise ValueError
    if {type(value), kind} == {int, float} and value == kind(value):
        return kind(value)
    if type(value) is kind:
        return value
    raise ValueError


def describe(kind):
    """What a user calls the type."""
    kind, _ = split_bounds(kind)
    if get_origin(kind) is Literal:
        return ' or '.join(map(repr, get_args(kind)))
    if get_origin(kind) is list:
        return f'{describe(get_args(kind)[0])}, separated by commas'
    if get_args(kind):
        return ' or '.join(map(describe, get_args(kind)))
    return {NoneType: 'None', InPath: 'a path', OutPath: 'a path'}.get(kind, kind.__name__)


# --- help ----------------------------------------------------------------------------------------

def usage(cls):
    """The help: the script's docstring, then each option with its default, comment and bounds."""
    lines, comments = [inspect.getmodule(cls).__doc__ or ''], {}  # python -OO drops it
    for owner in reversed(cls.__mro__[:-1]):
        comments |= comments_of(owner)
    defaults = cls()
    for field in dataclasses.fields(cls):
        kind, bounds = split_bounds(field.type)
        option = f'  --{field.name.rstrip("_")}={getattr(defaults, field.name)}'
        more = choices(kind) + list(bounds)
        limits = f' ({", ".join(more)})' if more else ''
        lines.append(f'{option.ljust(31)} {comments.get(field.name, "")}{limits}')
    return '\n'.join(lines)


def choices(kind):
    """The values of a Literal, also of one in a union, as a list of one text or none."""
    if get_origin(kind) is Literal:
        return [' | '.join(map(str, get_args(kind)))]
    found = [text for member in get_args(kind) for text in choices(member)]
    return [f'True | False | {found[0]}'] if found and bool in get_args(kind) else found


def comments_of(cls):
    """The comment behind each field in the source of a dataclass, by its name."""
    source = textwrap.dedent(inspect.getsource(cls))
    lines = source.splitlines()
    fields = [node for node in ast.parse(source).body[0].body if isinstance(node, ast.AnnAssign)]
    return {node.target.id: lines[node.end_lineno - 1][node.end_col_offset:].strip(' #')
            for node in fields}

