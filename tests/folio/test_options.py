"""Options: their types, their order, their errors."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest

import folio.options
from folio.cli import UserError
from folio.options import InPath, OutPath, Text, parse


@dataclass
class Options:
    """Options of every kind."""
    count: int = 3  # how many
    share: float = 0.5  # how much
    limit: int | None = None  # how far
    kind: Literal['gelu', 'relu2'] = 'gelu'  # which
    compile: bool | Literal['auto'] = 'auto'  # whether
    fast: bool = False  # or slow
    input: list[str] = field(default_factory=list)  # what
    start: Text = ''  # from where
    path: str = ''  # to where
    from_: str | None = None  # of whom
    made: OutPath | None = None  # a new folder
    read: list[InPath] = field(default_factory=list)  # old ones
    part: Annotated[float | None, '>= 0', '< 1'] = None  # between
    silent: int = 0


@pytest.mark.parametrize('argument, name, value', [
    ('--count=1e3', 'count', 1000), ('--count=5*8', 'count', 40), ('--count=-2', 'count', -2),
    ('--share=1', 'share', 1.0), ('--share=3e-4', 'share', 3e-4), ('--limit=7', 'limit', 7),
    ('--limit=None', 'limit', None), ('--kind=relu2', 'kind', 'relu2'), ('--fast', 'fast', True),
    ('--fast=true', 'fast', True), ('--fast=False', 'fast', False),
    ('--compile=True', 'compile', True), ('--compile=auto', 'compile', 'auto'),
    ('--input=a,b', 'input', ['a', 'b']),
    (r'--start=\n\tx', 'start', '\n\tx'), ('--start=a=b', 'start', 'a=b'),
    ('--start=', 'start', ''),
    (r'--path=C:\new', 'path', r'C:\new'), ('--from=gpt2', 'from_', 'gpt2'),
])
def test_a_value_gets_the_type_of_its_option(argument, name, value):
    options, given = parse(Options, [argument])
    assert getattr(options, name) == value and given == {name: value}
    assert type(getattr(options, name)) is type(value)


@pytest.mark.parametrize('argument, message', [
    ('--cuont=3', 'is it count'), ('--xyzzy=3', '--help'), ('--max_iters=9', 'max_steps'),
    ('--count=True', "must be int, not 'True'"), ('--count=1.5', 'must be int'),
    ('--count', 'must be int'), ('--count=1e999', 'must be int'), ('--start', 'must be Text'),
    ('--share', '--share=VALUE must be float'),
    ('--fast=1', 'must be bool'), ('--kind=moun', "'gelu' or 'relu2'"),
    ('--limit=x', 'int or None'), ('--count=exit()', 'must be int'), ('nowhere.py', 'no such file'),
])
def test_a_wrong_option_is_named_in_one_line(argument, message):
    with pytest.raises(UserError, match='.*') as error:
        parse(Options, [argument])
    assert message in str(error.value) and '\n' not in str(error.value)


def test_arguments_are_read_from_left_to_right(tmp_path):
    file = tmp_path / 'some.py'
    file.write_text('import math\n_half = 0.25\ncount = int(math.pi)\nshare = 2 * _half\n'
                    'def helper(): pass\n')
    options, given = parse(Options, ['--count=9', '--share=0.1', str(file), '--share=0.75'])
    assert (options.count, options.share, set(given)) == (3, 0.75, {'count', 'share'})


@pytest.mark.parametrize('source, message', [
    ('count = 1\ncounts = 2\n', 'counts'), ('count = True\n', 'must be int'),
    ('count = "3"', 'must be int'), ('count = (\n', 'line 1: SyntaxError'),
    ('count = 1\nshare = 1 / 0\n', 'line 2: ZeroDivisionError'),
])
def test_a_wrong_configuration_file_is_named_with_the_place(tmp_path, source, message):
    file = tmp_path / 'some.py'
    file.write_text(source)
    with pytest.raises(UserError) as error:
        parse(Options, [str(file)])
    assert message in str(error.value) and 'some.py' in str(error.value)


def test_help_shows_every_option_with_default_and_comment(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(Options, ['--help'])
    text = capsys.readouterr().out
    assert stop.value.code in (None, 0)
    assert '--count=3' in text and 'how many' in text and '--from=None' in text


@pytest.mark.parametrize('argument, message', [
    ('--part=-0.1', 'part must be >= 0 and < 1, not -0.1'), ('--part=1', 'not 1.0'),
    ('--part=nan', 'must be float or None')])
def test_a_number_out_of_bounds_is_refused_with_its_bounds(argument, message):
    with pytest.raises(UserError, match=message):
        parse(Options, [argument])
    assert parse(Options, ['--part=0'])[0].part == 0 and parse(Options, ['--part=None'])


def test_help_shows_bounds_choices_and_options_without_a_comment(capsys):
    with pytest.raises(SystemExit):
        parse(Options, ['-h'])
    lines = {line.split('=')[0].strip(): line for line in capsys.readouterr().out.splitlines()}
    assert lines['--part'].endswith('between (>= 0, < 1)') and '--silent' in lines
    assert lines['--kind'].endswith('which (gelu | relu2)')


def test_paths_in_a_configuration_are_relative_to_the_scripts_and_typed_ones_stay(
        tmp_path, monkeypatch):
    monkeypatch.setattr(folio.options, 'ROOT', tmp_path / 'scripts')
    file = tmp_path / 'some.py'
    file.write_text("made, read, path = 'out/a', ['b.txt', '/c.txt'], 'd'\n")
    options, _ = parse(Options, [str(file)])
    assert options.made == str(tmp_path / 'scripts/out/a')
    assert options.read == [str(tmp_path / 'scripts/b.txt'), str(Path('/c.txt'))]
    assert options.path == 'd'
    options, _ = parse(Options, [str(file), '--made=out/b', '--read=x,-'])
    assert (options.made, options.read) == ('out/b', ['x', '-'])


def test_a_path_is_found_from_where_the_user_is_or_else_beside_the_scripts(tmp_path, monkeypatch):
    monkeypatch.setattr(folio.options, 'ROOT', tmp_path)
    (tmp_path / 'here').mkdir()
    (tmp_path / 'run').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    assert folio.options.find('run') == tmp_path / 'run'
    (tmp_path / 'here/run').mkdir()
    assert folio.options.find('run') == Path('run')
    assert folio.options.find('nowhere') == Path('nowhere')


def test_a_configuration_of_old_is_told_what_to_write(tmp_path):
    file = tmp_path / 'some.py'
    file.write_text("from config import ROOT as _ROOT\ncount = 1\n")
    with pytest.raises(UserError, match="line 1: .*write out_dir = 'out/NAME', without an import"):
        parse(Options, [str(file)])


def test_an_old_configuration_that_imports_the_module_whole_is_told_too(tmp_path):
    file = tmp_path / 'some.py'
    file.write_text("import types as _t\n_config = _t.ModuleType('config')\n_config.ROOT\n")
    with pytest.raises(UserError, match="line 3: .*write out_dir = 'out/NAME'"):
        parse(Options, [str(file)])
