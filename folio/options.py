"""How every script reads its options: `python train.py [config/NAME.py ...] [--key=value ...]`.

A script reads the fields of one dataclass, from left to right, and the later wins. `--key value` is
the same as `--key=value`, but for options that may be true or false. A configuration file is Python
whose assignments are options. A field `from_` is the option `--from`.

    @dataclass
    class SampleConfig:
        out_dir: InPath = 'out/stdlib'  # what --help says of it
        top_k: Annotated[int | None, '>= 1'] = None  # a bound, which is checked and shown
"""

import ast
import contextlib
import dataclasses
import difflib
import functools
import inspect
import operator
import os
import runpy
import shlex
import textwrap
import traceback
from pathlib import Path, PurePath
from types import ModuleType, NoneType
from typing import Annotated, Literal, NewType, get_args, get_origin

from folio.cli import UserError, short

ROOT = Path(__file__).resolve().parent.parent  # data/, config/ and out/ stand here
Text = NewType('Text', str)  # which may be empty
DataName = NewType('DataName', str)  # of a data set; data/NAME, data/NAME.py, NAME/ are the same
InPath = NewType('InPath', str)  # of what is only read or gone on with
OutPath = NewType('OutPath', str)  # of what is made
NANOGPT = {'max_iters': 'max_steps', 'lr_decay_iters': 'max_steps', 'eval_iters': 'eval_tokens',
           'gradient_accumulation_steps': 'micro_batch_size', 'lr': 'learning_rate'}
COMPARISONS = {'>=': operator.ge, '>': operator.gt, '<=': operator.le, '<': operator.lt}


def find(path):
    """A path as the user typed it: from where they are, or else from the folder of the scripts."""
    path = Path(os.path.expanduser(path))  # which leaves a ~ that means nobody as it is
    return path if path.exists() or not (ROOT / path).exists() else ROOT / path


def command(script, *arguments):
    """The command that runs a script of ours, quoted for a shell, as one types it from here."""
    return shlex.join(['python', short(ROOT / script), *arguments])


def parse(cls, argv, bare=None, folder='config'):
    """(options, given): argv as an instance of the dataclass cls, and a dict of what was named.

    A word without dashes is a file to run, which ends in .py, or else a value of the option `bare`.
    folder: where such files are. UserError for an unknown option, a value of the wrong type or out
    of bounds, a file that can't be run. `--help` prints the options and ends the script.
    """
    if '--help' in argv or (bare, '-h') in words_of(cls, argv, bare):
        print(usage(cls))
        raise SystemExit
    fields, given = fields_of(cls), {}
    for key, text in words_of(cls, argv, bare):
        typed = key is not None
        values = {key: text} if typed else run_file(text, fields, folder)
        for name, value in values.items():
            where = f'--{name}' if typed else f'{text}: {name}'
            if name not in fields:
                advice = did_you_mean(name, {name: name for name in fields})
                helper = '' if typed else '; the name of a helper begins with _'
                raise UserError(f'{where}: no such option; {advice}{helper}')
            given[fields[name].name] = checked(where, value, fields[name], typed)
    return cls(**given), given


def fields_of(cls):
    """The fields of a dataclass by the names of their options."""
    return {field.name.rstrip('_'): field for field in dataclasses.fields(cls)}


def checked(where, value, field, typed):
    """The value, which stands where the text `where` says, as the type of a dataclass's field;
    UserError if it is of another type, or out of bounds."""
    try:
        return as_type(value, field.type, typed)
    except Exception:  # as different as the types
        reason = f', not {value!r:.80}' if isinstance(value, str) else ''
        raise UserError(f'{where} must be {describe(field.type)}{reason}') from None


# --- words ---------------------------------------------------------------------------------------

def words_of(cls, argv, bare=None):
    """[(key, text)] of the words of a command line; the key of a file to run is None, that of
    another word without dashes `bare`. UserError for an option without a value."""
    words, found = list(argv), []
    valued = {name for name, field in fields_of(cls).items()
              if bool not in (field.type, *get_args(field.type))}
    while words:
        word = words.pop(0)
        key, equals, text = word.removeprefix('--').partition('=')
        if not word.startswith('--'):
            key = None if word.endswith('.py') else bare
            if key and key in dict(found):
                raise UserError(f'{word}: {key} is named twice; a text with blanks needs quotes')
            found.append((key, word))
        elif equals or key not in valued:
            found.append((key, text if equals else 'True'))
        elif words and not words[0].startswith('--'):
            found.append((key, words.pop(0)))
        else:
            raise UserError(f'--{key} needs a value: --{key}=VALUE')
    return found


def run_file(argument, fields, folder):
    """The options that a configuration file assigns, a dict; UserError where it can't be run."""
    path = find(argument)
    if not argument.endswith('.py') or not path.is_file():
        files = {file.stem: file.relative_to(ROOT) for file in (ROOT / folder).rglob('*.py')}
        if 'input' in fields and path.exists():
            files = {path.stem: f'--input={shlex.quote(argument)}'}
        name = path.stem.lstrip('-').partition('=')[0]
        advice = did_you_mean(name, files | {name: f'--{name}' for name in fields})
        raise UserError(f'{argument}: no such option or .py file; {advice}')
    try:
        names = runpy.run_path(str(path))
    except Exception as error:  # whatever the user's code raises
        reason = f'{type(error).__name__}: {error}'
        if "'config'" in reason:  # a module that configurations once imported
            reason += "; write out_dir = 'out/NAME', without an import"
        raise UserError(f'{argument}, line {line_of(error, path)}: {reason}') from None
    return {key: value for key, value in names.items()
            if not (key.startswith('_') or isinstance(value, ModuleType) or callable(value))}


def line_of(error, path):
    """The line of the file `path` where an exception arose."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return lines[-1] if lines else getattr(error, 'lineno', '?')  # a SyntaxError's


def did_you_mean(word, known):
    """What to do about an unknown word. known: {what may be meant: how to write it}."""
    near = [name for name in known if len(word) > 2 and name.startswith(word)]
    near = near or difflib.get_close_matches(NANOGPT.get(word, word), known, n=1)
    return f'did you mean {known[near[0]]}?' if near else '--help lists the options'


# --- types ---------------------------------------------------------------------------------------

def as_type(value, kind, typed):
    """The value as the type `kind`; raises an exception if it isn't one. typed: it is a text
    from the command line; else a configuration file's value, whose relative paths are ROOT's."""
    members = get_args(kind)
    if type(value).__module__ == 'numpy':
        value = value.tolist()
    if get_origin(kind) is Annotated:
        return bounded(as_type(value, members[0], typed), members[1:])
    if get_origin(kind) is Literal:
        return members[[str(member) for member in members].index(str(value))]
    if get_origin(kind) is list:
        items = [value] if isinstance(value, str) else value
        items = map(str.strip, value.split(',')) if typed else items
        return [as_type(item, members[0], typed) for item in items if item != '']
    if members:
        return as_union(value, members, typed)
    if kind in (int, float, bool, NoneType):
        return as_number(value, kind, typed)
    return as_text(value, kind, typed)


def bounded(value, bounds):
    """The value; ValueError if it is not within bounds such as '>= 1', as None always is."""
    for bound in bounds:
        comparison, limit = bound.split()
        if value is not None and not COMPARISONS[comparison](value, float(limit)):
            raise ValueError
    return value


def as_union(value, members, typed):
    """The value as the last type in `members` that takes it, such as None in `X | None`."""
    for member in reversed(members):
        with contextlib.suppress(Exception):
            return as_type(value, member, typed)
    raise ValueError


def as_text(value, kind, typed):
    """The value as a str; only a Text may be empty."""
    value = str(value) if isinstance(value, PurePath) else value
    if not isinstance(value, str):
        raise TypeError
    if kind is Text:
        return value
    if not value or b'\0' in os.fsencode(value):  # no file has such a name
        raise ValueError
    if kind is DataName:
        path = PurePath(value)
        return path.name.removesuffix('.py') if str(path.parent) == 'data' else str(path)
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
    members = get_args(kind)
    if get_origin(kind) is Annotated:
        return f'{describe(members[0])}, {" and ".join(members[1:])}'
    if get_origin(kind) is Literal:
        return ' or '.join(map(repr, members))
    if get_origin(kind) is list:
        return f'{describe(members[0])}, separated by commas'
    if members:
        return ' or '.join(map(describe, members))
    return {NoneType: 'None', bool: 'True or False', int: 'a whole number', float: 'a number',
            InPath: 'a path', OutPath: 'a path'}.get(kind, 'a text')


# --- help ----------------------------------------------------------------------------------------

def usage(cls):
    """The help: the script's docstring, then each option with its default, comment and type."""
    lines, comments = [inspect.getmodule(cls).__doc__ or '', 'options:'], comments_of(cls)
    for name, field in fields_of(cls).items():
        default = getattr(cls(), field.name)
        text = ','.join(default) if isinstance(default, list) else default
        option, about = f'  --{name}={text}', f'{comments[field.name]} ({describe(field.type)})'
        lines.append(textwrap.fill(f'{option:31} {about}', 80, subsequent_indent=32 * ' '))
    return '\n'.join(lines)


def comments_of(cls):
    """{field: the comment behind it} in the source of a dataclass and of those it inherits from."""
    lines = [line.strip() for owner in reversed(cls.__mro__[:-1])
             for line in inspect.getsource(owner).splitlines()]
    return {line.partition(':')[0]: line.partition('  # ')[2] for line in lines}
