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
import dataclasses
import difflib
import functools
import glob
import inspect
import operator
import os
import re
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
ELSEWHERE = {  # what options are called in other programs, nanoGPT among them
    'learning_rate': 'lr', 'batch_size': 'bs', 'micro_batch_size': 'gradient_accumulation_steps',
    'max_steps': 'epochs iters iterations max_iters lr_decay_iters', 'eval_tokens': 'eval_iters',
    'block_size': 'context context_length seq_len ctx', 'n_embd': 'dim d_model hidden_size',
    'max_new_tokens': 'length n', 'start': 'prompt text input', 'out_dir': 'model checkpoint',
    'input': 'text', 'name': 'dataset'}
COMPARISONS = {'>=': operator.ge, '>': operator.gt, '<=': operator.le, '<': operator.lt}
REFUSALS = (ValueError, TypeError, SyntaxError, OverflowError, MemoryError, RecursionError)


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
    words = words_of(cls, argv)
    if {('help', None), (None, '-h')} & set(words):
        print(usage(cls))
        raise SystemExit
    fields, given = fields_of(cls), {}
    for where, key, value, typed in assignments(words, fields, bare, folder):
        if key not in fields:
            raise UserError(f'{where}: no such option; {advice(key, fields, typed)}')
        given[fields[key].name] = checked(where, value, fields[key], typed)
    return cls(**given), given


def advice(key, fields, typed):
    """What to do about a name that is no option; typed: it is one of the command line."""
    if not typed and 'dataset' in fields and key in ('url', 'input', 'tokenizer'):
        return 'a recipe is used by its name, --dataset=NAME'
    near = closest(key, fields)
    helper = '' if typed else '; the name of a helper begins with _'
    return (f'is it {near}?' if near else '--help lists them') + helper


def fields_of(cls):
    """The fields of a dataclass by the names of their options."""
    return {field.name.rstrip('_'): field for field in dataclasses.fields(cls)}


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


# --- words ---------------------------------------------------------------------------------------

def words_of(cls, argv):
    """[(key, text)] of the words of a command line: the text of an option is None where there is
    none, the key of a bare word is None."""
    words, found, fields = list(argv), [], fields_of(cls)
    while words:
        word = words.pop(0)
        key, equals, text = word.removeprefix('--').partition('=')
        if not word.startswith('--'):
            found.append((None, word))
        elif equals or key not in fields or may_be(fields[key], bool):
            found.append((key, text if equals else None))
        else:
            alone = not words or words[0].startswith('--')
            found.append((key, None if alone else words.pop(0)))
    return found


def may_be(field, *kinds):
    """Whether a field's type is one of these, or a union with one."""
    kind, _ = split_bounds(field.type)
    return bool({kind, get_origin(kind), *get_args(kind)} & set(kinds))


def assignments(words, fields, bare, folder):
    """(where, key, value, typed) for each option; typed: a text from the command line."""
    for key, text in words:
        if key is not None:
            yield f'--{key}', key, value_of(key, text, fields), True
        elif text.endswith('.py'):
            for name, value in run_file(text, fields, folder).items():
                yield f'{text}: {name}', name, value, False
        elif bare and not mistyped_option(text, fields):
            if sum(key is None for key, _ in words) > 1:
                raise UserError(f'{text}: {bare} is named twice; a text with spaces needs quotes')
            yield f'--{bare}', bare, value_of(bare, text, fields), True
        else:
            raise UserError(f'{text}: neither an option nor a file that ends in .py'
                            f'{did_you_mean(text, fields, folder)}')


def value_of(key, text, fields):
    """The text of an option; that of a bare one is True. UserError where one is missing."""
    if key not in fields:
        return text
    if text is None and may_be(fields[key], bool):
        return 'True'
    if text is None or text == '' and not may_be(fields[key], Text, list):
        raise UserError(f'--{key} needs a value: --{key}=VALUE')
    return text


def did_you_mean(word, fields, folder):
    """How an error about a bare word ends: with what may be meant, if anything is like it."""
    meant = mistyped_option(word, fields) or likely(word, shlex.quote(word), fields, folder)
    return f'; did you mean {meant}?' if meant else '; options are --key=value'


def likely(word, quoted, fields, folder):
    """The model, text, configuration or data set that a bare word may name, as one names it."""
    if 'resume' in fields and (find(word) / 'ckpt.pt').exists():
        return f'--out_dir={quoted} --resume=True'
    readable = word == '-' or find(word).exists() or glob.glob(word)
    if 'from' in fields:
        return f'--from={quoted}'
    if 'input' in fields and readable:
        return f'--input={quoted}'
    files = {path.stem: path for path in sorted((ROOT / folder).rglob('*.py'))}
    if near := closest(Path(word).name.removesuffix('.py'), files):
        return files[near].relative_to(ROOT)
    if 'dataset' in fields and (ROOT / 'data' / word).is_dir():
        return f'--dataset={quoted}'
    return command('prepare.py', f'--input={word}', '--name=NAME') if readable else ''


def mistyped_option(word, fields):
    """The option that a bare word may be, with other dashes or without `=`; '' if it is none."""
    name = word.lstrip('-–—')
    if name.lower() in ('true', 'false', 'auto'):
        return f'--OPTION={name}'
    return f'--{name}' if name and (name != word or name.partition('=')[0] in fields) else ''


def closest(word, names):
    """The name that another program has for it, or that is most like a word as a whole or in a
    part; '' if none is."""
    def likeness(name):
        parts = [name, *name.split('_')]
        ratios = [difflib.SequenceMatcher(None, part, word).ratio() for part in parts]
        begins = len(word) > 1 and any(part.startswith(word) for part in parts)
        return max(begins, *ratios), ratios[0]
    known = [name for name, others in ELSEWHERE.items() if word in others.split()]
    best = max(names, key=likeness, default='')
    near = best if word and best and likeness(best) > (0.6,) else ''
    return next((name for name in known if name in names), near)


def run_file(argument, fields, folder):
    """The options that a configuration file assigns, a dict; UserError where it can't be run."""
    path = find(argument)
    if not path.is_file():
        raise UserError(f'{argument}: no such file{did_you_mean(argument, fields, folder)}')
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
    if type(value).__module__ == 'numpy':
        value = value.tolist()
    if get_origin(kind) is Literal:
        return members[[str(member) for member in members].index(str(value))]
    if get_origin(kind) is list:
        if isinstance(value, str):
            value = filter(None, map(str.strip, value.split(',')) if typed else [value])
        return [as_type(item, members[0], typed) for item in value]
    if members:
        return as_union(value, members, typed)
    if kind in (str, Text, DataName, InPath, OutPath):
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
    if kind in (InPath, OutPath) and isinstance(value, PurePath):
        value = str(value)
    if not isinstance(value, str):
        raise TypeError
    if kind is not Text and b'\0' in os.fsencode(value):  # no file has such a name
        raise ValueError
    if kind is not Text and not value:
        raise ValueError
    if kind is DataName:
        folder, name = os.path.split(os.path.normpath(value))
        return name.removesuffix('.py') if folder == 'data' else os.path.join(folder, name)
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
    names = {NoneType: 'None', bool: 'True or False', int: 'a whole number', float: 'a number'}
    return names.get(kind, 'a path' if kind in (InPath, OutPath) else 'a text')


# --- help ----------------------------------------------------------------------------------------

def usage(cls):
    """The help, as wide as the terminal: the script's docstring, then each option with its default,
    comment and bounds."""
    import shutil  # which loads compressions
    width = max(60, min(shutil.get_terminal_size().columns, 100))
    text, comments = inspect.getmodule(cls).__doc__ or '', {}  # python -OO drops it
    parts = [part if part.startswith(' ') else textwrap.fill(part, width)
             for part in text.strip().split('\n\n')]
    for owner in reversed(cls.__mro__[:-1]):
        comments |= comments_of(owner)
    lines = [describe_option(field, getattr(cls(), field.name), comments.get(field.name, ''), width)
             for field in dataclasses.fields(cls)]
    return '\n\n'.join([*parts, '\n'.join(lines)])


def describe_option(field, default, comment, width):
    """The lines of the help on one option."""
    kind, bounds = split_bounds(field.type)
    if isinstance(default, list):
        default = ','.join(map(str, default))
    more = choices(kind) + [bound.replace(' ', '\xa0') for bound in bounds]  # not to be wrapped
    limits = f' ({", ".join(more)})' if more else ''
    option = f'--{field.name.rstrip("_")}={default}'.ljust(29)
    lines = textwrap.fill(f'{option} {comment}{limits}', width, initial_indent='  ',
                          subsequent_indent=' ' * 32, break_on_hyphens=False)
    return lines.replace('\xa0', ' ')


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

