"""Options: their types, their order, their errors."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
from conftest import REPOSITORY

import folio.options
from folio.cli import UserError
from folio.options import InPath, OutPath, Text, command, fields_of, parse
from prepare import PrepareConfig
from sample import SampleConfig
from train import TrainConfig


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
    max_steps: int = 9  # for so long


@pytest.mark.parametrize('argument, name, value', [
    ('--count=1e3', 'count', 1000), ('--count=5*8', 'count', 40), ('--count=-2', 'count', -2),
    ('--share=1', 'share', 1.0), ('--share=3e-4', 'share', 3e-4), ('--limit=7', 'limit', 7),
    ('--limit=None', 'limit', None), ('--kind=relu2', 'kind', 'relu2'), ('--fast', 'fast', True),
    ('--fast=true', 'fast', True), ('--fast=False', 'fast', False),
    ('--compile=True', 'compile', True), ('--compile=auto', 'compile', 'auto'),
    ('--input=a,b', 'input', ['a', 'b']),
    (r'--start=\n\tx', 'start', r'\n\tx'), ('--start=a=b', 'start', 'a=b'),
    ('--start=', 'start', ''), ('--input=', 'input', []),
    (r'--path=C:\new', 'path', r'C:\new'), ('--from=gpt2', 'from_', 'gpt2'),
])
def test_a_value_gets_the_type_of_its_option(argument, name, value):
    options, given = parse(Options, [argument])
    assert getattr(options, name) == value and given == {name: value}
    assert type(getattr(options, name)) is type(value)


def test_a_second_bare_word_is_an_error_and_a_text_in_a_file_is_one_item(tmp_path):
    with pytest.raises(UserError, match='b: made is named twice'):
        parse(Options, ['a', 'b'], bare='made')
    (tmp_path / 'a.py').write_text("input = 'Poems, 1820.txt'")
    assert parse(Options, [str(tmp_path / 'a.py')])[0].input == ['Poems, 1820.txt']


@pytest.mark.parametrize('word', ['-count=3', 'count=3'])
def test_an_option_without_its_dashes_is_named(word):
    with pytest.raises(UserError, match='did you mean --count?'):
        parse(Options, [word])


def test_help_is_shown_after_an_option_without_a_value(capsys):
    with pytest.raises(SystemExit):
        parse(Options, ['--path', '--help'])
    assert '--count' in capsys.readouterr().out


@pytest.mark.parametrize('argument, message', [
    ('--cuont=3', 'did you mean count?'), ('--xyzzy=3', '--help'), ('--max_iters=9', 'max_steps'),
    ('--count=True', "must be a whole number, not 'True'"), ('--count=1.5', 'a whole number'),
    ('--count', '--count needs a value: --count=VALUE'), ('--count=1e999', 'a whole number'),
    ('--start', '--start needs a value'), ('--input', '--input needs a value'),
    ('--share=', "must be a number, not ''"), ('--path=', "must be a text, not ''"),
    ('--made=', "must be a path or None, not ''"), ('--fast=', "must be True or False, not ''"),
    ('--fast=1', 'must be True or False'), ('--kind=moun', "'gelu' or 'relu2'"),
    ('--limit=x', 'a whole number or None'), ('--count=exit()', 'a whole number'),
    ('nowhere.py', 'no such option or .py file'),
])
def test_a_wrong_option_is_named_in_one_line(argument, message):
    with pytest.raises(UserError, match='.*') as error:
        parse(Options, [argument])
    assert message in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('name, text, value', [
    ('count', '-1', -1), ('share', '3e-4', 3e-4), ('limit', 'None', None),
    ('kind', 'relu2', 'relu2'),
    ('input', 'a,b', ['a', 'b']), ('start', '-', '-'), ('start', '', ''), ('path', 'a b', 'a b'),
    ('from', 'x.py', 'x.py'), ('made', '-h', '-h')])
def test_a_value_may_be_the_next_word(name, text, value):
    options, given = parse(Options, ['--fast', f'--{name}', text, '--silent=1'])
    assert list(given.values()) == [True, value, 1] and options.silent == 1


@pytest.mark.parametrize('argv', [['--path', '--fast'], ['--path'], ['--input', '--fast']])
def test_a_value_that_is_missing_is_not_taken_from_the_next_option(argv):
    with pytest.raises(UserError, match='needs a value'):
        parse(Options, argv)


@pytest.mark.parametrize('name', ['fast', 'compile'])
def test_an_option_that_may_be_true_or_false_takes_no_next_word(tmp_path, name):
    (tmp_path / 'some.py').write_text('count = 8\n')
    options, given = parse(Options, [f'--{name}', str(tmp_path / 'some.py')])
    assert given == {name: True, 'count': 8}
    with pytest.raises(UserError, match='False: no such option or .py file'):
        parse(Options, [f'--{name}', 'False'])


def test_a_bare_word_is_the_option_that_a_script_names_for_it(tmp_path):
    (tmp_path / 'some.py').write_text('count = 8\n')
    for argv in (['out/x'], ['--count=1', 'out/x', '--fast']):
        assert parse(Options, argv, bare='made')[1]['made'] == 'out/x'
    assert parse(Options, [str(tmp_path / 'some.py')], bare='made')[1] == {'count': 8}
    with pytest.raises(UserError, match='--made must be a path'):
        parse(Options, [''], bare='made')


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """A folder that stands for the scripts', with what users may name in it."""
    monkeypatch.setattr(folio.options, 'ROOT', tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ('config/shakespeare_char.py', 'config/gpt2.py', 'config/ladder/1_bigram.py',
                 'data/shakespeare.py', 'data/mybook/meta.json', 'my book.txt'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize('word, meant', [
    ('config/shakespeare', 'config/shakespeare_char.py'),
    ('shakespeare_char', 'config/shakespeare_char.py'),
    ('config/shakespear_char.py', 'config/shakespeare_char.py'),
    ('config/ladder/bigram', 'config/ladder/1_bigram.py'), ('1_bigram.py', 'config/ladder/1_big'),
    ('gpt2', 'config/gpt2.py')])
def test_a_bare_word_names_the_closest_configuration(scripts, word, meant):
    with pytest.raises(UserError) as error:
        parse(TrainConfig, [word])
    assert f'did you mean {meant}' in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('word, meant', [
    ('my book.txt', "--input='my book.txt'"), ('data', '--input=data'),
    ('shakespear', 'data/shakespeare.py'), ('data/shakespeer.py', 'data/shakespeare.py')])
def test_a_text_is_not_run_as_a_recipe(scripts, word, meant):
    with pytest.raises(UserError) as error:
        parse(PrepareConfig, [word], folder='data')
    assert f'did you mean {meant}?' in str(error.value)


def test_a_closest_configuration_is_named_as_it_is_found_from_anywhere(scripts, monkeypatch):
    (scripts / 'elsewhere').mkdir()
    monkeypatch.chdir(scripts / 'elsewhere')
    with pytest.raises(UserError, match=r'did you mean config/gpt2.py\?'):
        parse(TrainConfig, ['config/gpt-2'])
    assert folio.options.find('config/gpt2.py') == scripts / 'config/gpt2.py'


def test_a_bare_word_that_is_like_nothing_is_told_how_options_look(scripts):
    with pytest.raises(UserError, match=r'^xyz: no such .*; --help lists the options$'):
        parse(TrainConfig, ['xyz'])


@pytest.mark.parametrize('word, meant', [
    ('max_iters', 'max_steps'), ('lr_decay_iters', 'max_steps'), ('eval_iters', 'eval_tokens'),
    ('gradient_accumulation_steps', 'micro_batch_size'), ('lr', 'learning_rate'),
    ('learning_rat', 'learning_rate'), ('layers', 'n_layer'), ('heads', 'n_head'),
    ('batch', 'batch_size'), ('data', 'dataset'), ('out-dir', 'out_dir'), ('embd', 'n_embd')])
def test_the_closest_option_is_named_and_for_one_of_nanogpt_ours(word, meant):
    with pytest.raises(UserError, match=rf'^--{word}: no such option; did you mean {meant}\?$'):
        parse(TrainConfig, [f'--{word}=1'])


def test_numbers_of_numpy_and_paths_of_pathlib_are_values_of_a_configuration(tmp_path):
    file = tmp_path / 'some.py'
    file.write_text('''
import numpy as np, pathlib
share, count, fast, path = np.float64(3e-4), np.int64(8), np.bool_(True), np.str_("x")
input, made = np.array(["a", "b"]), pathlib.Path("/out/a")
''')
    options, given = parse(Options, [str(file)])
    assert (options.share, options.count, options.fast) == (3e-4, 8, True)
    assert options.input == ['a', 'b'] and options.made == '/out/a'
    assert [type(given[name]) for name in ('share', 'count', 'fast', 'path', 'made')] == [
        float, int, bool, str, str]
    for wrong in ('np.float64(1.5)', 'np.array([1, 2])', 'np.float64("nan")', 'np.bool_(True)'):
        file.write_text(f'import numpy as np\ncount = {wrong}\n')
        with pytest.raises(UserError, match='some.py: count must be a whole number'):
            parse(Options, [str(file)])


def test_what_a_loop_leaves_over_is_told_how_helpers_are_called(tmp_path):
    file = tmp_path / 'some.py'
    file.write_text('count = 0\nfor i in range(3):\n    count += i\n')
    with pytest.raises(UserError, match='some.py: i: no such option; .* helper begins with _$'):
        parse(Options, [str(file)])
    with pytest.raises(UserError, match='--i: no such option; --help lists the options$'):
        parse(Options, ['--i=3'])


def test_a_printed_command_can_be_typed(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command('train.py', '--out_dir=my run; $x', '--resume=True'))
    assert words[0] == 'python' and words[2:] == ['--out_dir=my run; $x', '--resume=True']
    assert (tmp_path / words[1]).resolve() == REPOSITORY / 'train.py'
    monkeypatch.chdir(REPOSITORY)
    assert command('train.py', '--out_dir=out/a') == 'python train.py --out_dir=out/a'


def test_arguments_are_read_from_left_to_right(tmp_path):
    file = tmp_path / 'some.py'
    file.write_text('import math\n_half = 0.25\ncount = int(math.pi)\nshare = 2 * _half\n'
                    'def helper(): pass\n')
    options, given = parse(Options, ['--count=9', '--share=0.1', str(file), '--share=0.75'])
    assert (options.count, options.share, set(given)) == (3, 0.75, {'count', 'share'})


@pytest.mark.parametrize('source, message', [
    ('count = 1\ncounts = 2\n', 'counts'), ('count = True\n', 'must be a whole number'),
    ('count = "3"', 'must be a whole number'), ('count = (\n', 'line 1: SyntaxError'),
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
    ('--part=-0.1', "part must be a number or None, >= 0 and < 1, not '-0.1'"),
    ('--part=1', "not '1'"),
    ('--part=nan', 'must be a number or None')])
def test_a_number_out_of_bounds_is_refused_with_its_bounds(argument, message):
    with pytest.raises(UserError, match=message):
        parse(Options, [argument])
    assert parse(Options, ['--part=0'])[0].part == 0 and parse(Options, ['--part=None'])


def test_help_shows_bounds_choices_and_options_without_a_comment(capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '100')
    with pytest.raises(SystemExit):
        parse(Options, ['-h'])
    lines = {line.split('=')[0].strip(): line for line in capsys.readouterr().out.splitlines()}
    assert lines['--part'].endswith('between (a number or None, >= 0 and < 1)')
    assert lines['--kind'].endswith("which ('gelu' or 'relu2')") and '--silent' in lines


@pytest.mark.parametrize('columns', [80, 100, 200])
def test_the_options_of_the_help_fit_the_terminal(capsys, monkeypatch, columns):
    monkeypatch.setenv('COLUMNS', str(columns))
    for cls in (TrainConfig, SampleConfig, PrepareConfig):
        with pytest.raises(SystemExit):
            parse(cls, ['--help'])
        text = capsys.readouterr().out.partition('options:')[2]
        assert max(map(len, text.splitlines())) <= columns
        assert all(f'--{name}=' in text for name in fields_of(cls))


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


@pytest.mark.parametrize('typed', ['tiny', 'data/tiny', 'data/tiny.py', 'tiny/', './tiny'])
def test_a_data_set_is_named_by_its_name_its_folder_or_its_recipe(typed):
    assert parse(TrainConfig, [f'--dataset={typed}'])[0].dataset == 'tiny'
