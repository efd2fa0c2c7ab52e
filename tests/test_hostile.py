"""Hostile input: whatever comes in, a success or one clear line comes out, and no code in it runs.

    python -m pytest tests/test_hostile.py            # a few of each kind
    python -m pytest tests/test_hostile.py -m slow    # more than 10,000
"""

import contextlib
import copy
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import pytest
import torch
from conftest import ENVIRONMENT, REPOSITORY, TEXT, TINY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import folio.options
import prepare
import sample
import train
from folio import checkpoint, cli, journal
from folio.cli import UserError
from folio.journal import cut_file
from folio.machine import open_machine
from folio.tokenizer import GPT2_PATTERN, Tokenizer, bpe_spec
from tools import bench, convert, evaluate, hf_tokenizer

LINES = (UserError, OSError, MemoryError, SystemExit)  # of which cli.run makes one line
SECONDS = 30  # longer is a hang
CONFIGS = [train.TrainConfig, sample.SampleConfig, prepare.PrepareConfig, convert.ConvertConfig,
           evaluate.EvaluateConfig, bench.BenchConfig]
SCRIPTS = ['train.py', 'sample.py', 'prepare.py', 'tools/evaluate.py', 'tools/convert.py',
           'tools/bench.py']
NUMBERS = ['0', '-1', '1e-50', '-1e-50', '1e50', '1e999', '-1e999', '1e999*0', 'nan', 'inf', '9e18',
           '-9e18', '1e20', '9' * 5000, '1*' * 500 + '1', '-' * 9000 + '1', '(' * 9000, '[' * 300,
           '0.5', 'True', 'None', '1j', '"1"', "b''", '0x7f', '1_0', '٣', '1;2']
WORDS = ['', ' ', '-', '--', '.', '..', '/', '~', '~nobody_of_this_name/x', '../' * 50, '\0', '\n',
         '\x1b[2J', '\udcff', '\ud800', 'a' * 300, 'a/' * 3000, 'FILE:', 'FILE:\0', 'FILE:/',
         'file:///', 'http://[', 'cuda:99999999999999', 'meta', 'bpe:' + '9' * 5000, 'bpe:0', ',,,',
         '*', '[', '{}', '%s', '{0}', "'", '=', '==', 'ａｕｔｏ']
VALUES = [None, True, 0, -1, 1, 3, 2 ** 31, 2 ** 63, 2 ** 64, 10 ** 30, 0.5, -0.5, 1e-320, 1e308,
          math.inf, -math.inf, math.nan, '', 'x', '\0', '\ud800', '../x', 'float64', 'a' * 999,
          [], [[]], [1], ['x'], {}, {'x': 1}, {'kind': 'char'}]
GONE = object()  # in place of a value: its key goes


# --- helpers -------------------------------------------------------------------------------------

def survives(work, *arguments):
    """What work returns, or the error whose line a user sees; everything else is a fault, and so
    is a hang."""
    def give_up(number, frame):
        pytest.fail(f'no end after {SECONDS} s')
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS)
    try:
        return work(*arguments)
    except LINES as error:
        return error
    finally:
        signal.alarm(0)


def refused(work, *arguments):
    """The line that refuses what work is given."""
    result = survives(work, *arguments)
    assert isinstance(result, UserError), f'{result!r} is no UserError'
    line = cli.error_line(result)
    assert '\n' not in line and len(line) < 3000
    return line


def fuzz(strategy, count, work):
    """Let work survive `count` examples."""
    @settings(max_examples=count, deadline=None, derandomize=True, database=None,
              suppress_health_check=list(HealthCheck))
    @given(strategy)
    def attempt(example):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            survives(work, example)
    attempt()


def counts(short, long):
    """A test with `short` examples in the ordinary suite, `long` in the slow one."""
    return pytest.mark.parametrize('count', [
        pytest.param(short, id='some'), pytest.param(long, id='many', marks=pytest.mark.slow)])


def places(value, path=()):
    """The paths to all that is in nested dicts and lists."""
    pairs = value.items() if isinstance(value, dict) else (
        enumerate(value) if isinstance(value, list) else ())
    for key, item in pairs:
        yield (*path, key)
        yield from places(item, (*path, key))


def changed(value, changes):
    """A copy of nested dicts and lists with changes, (path, new value or GONE)."""
    value = copy.deepcopy(value)
    for (*path, last), new in changes:
        inner = value
        with contextlib.suppress(LookupError, TypeError):  # an earlier change took the place away
            for key in path:
                inner = inner[key]
            inner[last] = new
            if new is GONE:
                del inner[last]
    return value


def mutations(value, values=VALUES):
    """A strategy of such copies with one to three hostile changes."""
    change = st.tuples(st.sampled_from(list(places(value))), st.sampled_from([*values, GONE]))
    return st.lists(change, min_size=1, max_size=3).map(lambda changes: changed(value, changes))


def damages(data):
    """A strategy of the bytes cut, with others in their midst, or with bits flipped."""
    place = st.integers(0, len(data) - 1)
    return st.one_of(
        place.map(lambda i: data[:i]),
        st.tuples(place, st.binary(min_size=1, max_size=40)).map(
            lambda pair: data[:pair[0]] + pair[1] + data[pair[0] + len(pair[1]):]),
        st.lists(st.tuples(place, st.integers(1, 255)), min_size=1, max_size=8).map(
            lambda flips: flipped(data, flips)))


def flipped(data, flips):
    """The bytes, some of them xored, (place, bits)."""
    data = bytearray(data)
    for i, bits in flips:
        data[i] ^= bits
    return bytes(data)


@pytest.fixture(scope='module')
def house(tmp_path_factory):
    """A folder that stands for the repository's, with a corpus, a run and a converted model."""
    folder = tmp_path_factory.mktemp('house')
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folio.options, 'ROOT', folder)
        patch.setenv('DATA_MIRROR', str(folder))
        patch.chdir(folder)
        (folder / 'tiny.txt').write_text(TEXT, encoding='utf-8')
        prepare.main(['--input=tiny.txt', '--tokenizer=char', '--name=tiny'])
        train.main([*TINY, '--max_steps=1', '--out_dir=run', '--position=rope', '--qk_norm=False',
                    '--norm_weight=True', '--mlp=swiglu', '--tied=False', '--token_shift=False'])
        convert.main(['--out_dir=run', '--to=hf', '--dest=hf'])
        yield folder
    torch.set_num_threads(threads)


@pytest.fixture(scope='module')
def state(house):
    """The dict of the run's checkpoint."""
    return torch.load(house / 'run' / 'ckpt.pt', weights_only=True)


def take_sample(path, *argv):
    sample.main([f'--out_dir={path}', '--device=cpu', '--dtype=float32', '--max_new_tokens=3',
                 *argv])


def set_up(*argv):
    """What train.py does before its first step."""
    with open_machine(train.TrainConfig) as machine:
        return train.set_up(*folio.options.parse(train.TrainConfig, [*TINY, *argv]), machine)


def load_all(path):
    """Read a checkpoint for everything that takes one."""
    survives(take_sample, path)
    survives(set_up, f'--init_from={path}', '--out_dir=new')
    survives(evaluate.main, [f'--out_dir={path}', '--device=cpu', '--eval_tokens=40'])
    survives(convert.main, [f'--out_dir={path}', '--to=hf', '--dest=hf'])  # which is there


def resume(path):
    """Go on with the run of a checkpoint."""
    (path.parent / 'ckpt.prev.pt').unlink(missing_ok=True)
    set_up('--resume=True', f'--out_dir={path.parent}')


# --- options -------------------------------------------------------------------------------------

def options_of(cls):
    """A strategy of argv for a script's dataclass."""
    names = st.sampled_from([field.name.rstrip('_') for field in CONFIGS_FIELDS[cls]])
    names = st.one_of(names, names, names, st.text(max_size=8))
    values = st.one_of(st.sampled_from(NUMBERS), st.sampled_from(WORDS), st.text(max_size=20),
                       st.floats().map(str), st.integers().map(str))
    option = st.tuples(names, values).map(lambda pair: f'--{pair[0]}={pair[1]}')
    bare = st.one_of(names.map(lambda name: f'--{name}'), st.sampled_from(WORDS))
    return st.tuples(st.just(cls), st.lists(st.one_of(option, option, bare), max_size=3))


CONFIGS_FIELDS = {cls: list(cls.__dataclass_fields__.values()) for cls in CONFIGS}


@counts(100, 4000)
def test_no_options_break_their_reader(house, count):
    fuzz(st.one_of(*map(options_of, CONFIGS)), count,
         lambda case: refused_or_right(*case))


def refused_or_right(cls, argv):
    """Read the options; what is taken is of the option's type, and a number is finite."""
    options, _ = folio.options.parse(cls, argv)
    for value in vars(options).values():
        assert not isinstance(value, float) or math.isfinite(value)
        assert type(value) is not int or abs(value) < 2 ** 63


@counts(15, 500)
def test_no_option_breaks_a_sample(house, count):
    names = [field.name for field in CONFIGS_FIELDS[sample.SampleConfig]
             if field.name not in ('out_dir', 'max_new_tokens', 'num_samples')]
    option = st.tuples(st.sampled_from(names), st.sampled_from(NUMBERS + WORDS))
    fuzz(st.lists(option, min_size=1, max_size=2), count, lambda options: take_sample(
        'run', *(f'--{name}={value}' for name, value in options if name != 'start' or
                 value != '-')))


@counts(15, 500)
def test_no_option_breaks_the_start_of_a_run(house, count):
    names = [field.name for field in CONFIGS_FIELDS[train.TrainConfig]
             if field.name not in ('wandb_project', 'compile', 'deterministic', 'resume')]
    option = st.tuples(st.sampled_from(names), st.sampled_from(NUMBERS + WORDS))
    fuzz(option, count, lambda pair: set_up('--out_dir=new', f'--{pair[0]}={pair[1]}'))


@counts(10, 300)
def test_no_option_breaks_the_tools(house, count):
    mains = {prepare.main: ['--input=tiny.txt', '--name=other'],
             evaluate.main: ['--out_dir=run', '--device=cpu', '--eval_tokens=40'],
             convert.main: ['--out_dir=run', '--to=hf', '--dest=hf']}
    fields = {prepare.main: prepare.PrepareConfig, evaluate.main: evaluate.EvaluateConfig,
              convert.main: convert.ConvertConfig}
    cases = [(main, name) for main, cls in fields.items()
             for name in (field.name.rstrip('_') for field in CONFIGS_FIELDS[cls])
             if name not in ('input', 'out_dir', 'picture', 'url', 'task')]
    option = st.tuples(st.sampled_from(cases), st.sampled_from(NUMBERS + WORDS))
    fuzz(option, count, lambda case: case[0][0]([*mains[case[0][0]], f'--{case[0][1]}={case[1]}']))


@pytest.mark.parametrize('main, argv, message', [
    (train.main, ['--max_seconds=1e999'], 'max_seconds must be a number or None'),
    (train.main, ['--max_seconds=inf'], 'max_seconds must be a number or None'),
    (train.main, ['--rope_theta=1e999*0'], 'rope_theta must be a number'),
    (train.main, ['--rope_theta=-1'], 'rope_theta must be a number, > 0'),
    (train.main, ['--learning_rate=1e999'], 'learning_rate must be a number'),
    (train.main, ['--batch_size=1e30'], 'batch_size must be a whole number'),
    (train.main, ['--n_layer=1e9'], 'n_layer must be'),
    (train.main, [*TINY, '--n_embd=1e16', '--position=none'], 'out of memory'),
    (train.main, [*TINY, '--dataset=/'], 'no data set or recipe'),
    (train.main, [*TINY, '--dataset=../../x'], 'no data set or recipe'),
    (train.main, [*TINY, '--device=meta'], 'device=meta does not work here'),
    (train.main, [*TINY, '--device=\udcff'], 'does not work here'),
    (sample.main, ['--seed=1e20'], 'seed must be a whole number'),
    (sample.main, ['--seed=-1'], 'seed must be a whole number, >= 0'),
    (sample.main, ['--out_dir=run', '--num_samples=1e9'], 'num_samples must be'),
    (sample.main, ['--out_dir=\0'], 'out_dir must be a path'),
    (sample.main, ['--out_dir=~nobody_of_this_name/run'], 'no such checkpoint'),
    (prepare.main, ['--input=tiny.txt', '--name=x', '--tokenizer=bpe:' + 5000 * '9'], 'no token'),
    (prepare.main, ['--url=http://127.0.0.1:9/..', '--name=x'], 'has to end in a file name'),
    (prepare.main, ['--url=http://127.0.0.1:9/', '--name=x'], 'has to end in a file name'),
    (prepare.main, ['--input=~nobody_of_this_name/x', '--name=x'], 'no such file'),
    (sample.main, ['a\nb'], r'a\\nb: there is no such checkpoint'),
    (prepare.main, ['a\nb'], r'a\\nb: no such option or .py file'),
])
def test_an_option_out_of_this_world_is_one_line(house, main, argv, message):
    assert re.search(message, refused(main, argv))


def test_the_coldest_sample_is_the_likeliest(house, capsys):
    texts = []
    for temperature in ('0', '1e-50', '1e-300'):
        take_sample('run', f'--temperature={temperature}')
        texts.append(capsys.readouterr().out)
    assert len(set(texts)) == 1


@counts(30, 500)
def test_no_configuration_file_breaks_a_script(house, count):
    values = st.sampled_from([
        '10 ** 5000', '-10 ** 5000', "float('nan')", "float('inf')", 'object()', "'\\0'", '1j',
        "'\\ud800'", '[[]] * 3', "b''", '{}', 'print', '()', 'None', 'int', '...', '[1, "a"]',
        '(' * 300, '-' * 3000 + '1', '[' * 90 + ']' * 90, '"a" * 10 ** 6', '1 / 0', 'exit()', 'x',
        'type("T", (), {"__repr__": None})()', 'range(3)', '{1}', '"\\n"', 'lambda: 0'])
    names = st.sampled_from([field.name for field in CONFIGS_FIELDS[train.TrainConfig]])
    source = st.lists(st.tuples(names, values), max_size=3).map(
        lambda pairs: '\n'.join(f'{name} = {value}' for name, value in pairs).encode())
    path = house / 'case.py'

    def read(source):
        path.write_bytes(source)
        refused_or_right(train.TrainConfig, [str(path)])
    fuzz(st.one_of(source, source, st.binary(max_size=60)), count, read)


@pytest.mark.parametrize('source', [
    'n_layer = 10 ** 5000', "dataset = '\\0'", "out_dir = '\\ud800'",
    "dtype = type('T', (), {'__repr__': None})()"])
def test_a_configuration_out_of_this_world_is_one_line(house, source):
    (house / 'case.py').write_text(source)
    assert 'case.py: ' in refused(folio.options.parse, train.TrainConfig, ['case.py'])


# --- a corpus ------------------------------------------------------------------------------------

@pytest.fixture
def corpus(house):
    """The folder of a copy of the corpus, called case."""
    shutil.rmtree(house / 'data' / 'case', ignore_errors=True)
    return shutil.copytree(house / 'data' / 'tiny', house / 'data' / 'case')


def read_corpus():
    train_tokens, val_tokens, meta = prepare.open_corpus('case')
    if len(train_tokens) > 20:
        train_tokens.windows([0, len(train_tokens) - 10], 10)
        train_tokens.fingerprint()


@counts(30, 1000)
def test_no_token_file_breaks_its_reader(corpus, count):
    whole = (corpus / 'train.bin').read_bytes()
    made = json.loads((corpus / 'meta.json').read_text())
    (corpus / 'meta.json').write_text(json.dumps(made | {'tokens': {}}))
    words = st.lists(st.one_of(st.just(prepare.LLMC_HEADER[0]), st.just(1), st.integers(
        -2 ** 31, 2 ** 31 - 1)), min_size=3, max_size=12)
    header = words.map(lambda words: b''.join(word.to_bytes(4, 'little', signed=True)
                                              for word in words))
    right = st.integers(-600, 600).map(lambda n: b''.join(
        word.to_bytes(4, 'little', signed=True) for word in (*prepare.LLMC_HEADER, n)).ljust(
            max(12, 1024 + 2 * n), b'\0'))

    def read(data):
        (corpus / 'train.bin').write_bytes(data)
        read_corpus()
    fuzz(st.one_of(damages(whole), header, right, st.binary(max_size=50)), count, read)


@counts(20, 800)
def test_no_meta_json_breaks_what_reads_it(corpus, count):
    text = (corpus / 'meta.json').read_text()
    made = json.loads(text)

    def read(text):
        (corpus / 'meta.json').write_bytes(text)
        survives(read_corpus)
        survives(set_up, '--dataset=case', '--out_dir=new')
    texts = st.one_of(mutations(made).map(lambda made: json.dumps(made).encode()),
                      st.sampled_from(VALUES).map(lambda value: json.dumps(value).encode()),
                      damages(text.encode()), st.binary(max_size=30))
    fuzz(texts, count, read)


@pytest.mark.parametrize('text', [
    '', '{}', '[]', 'null', '5', '"x"', '[' * 100000, '\ud800', '1' * 5000, '{"tokens": {}}',
    {'dtype': 'float64'}, {'dtype': 'object'}, {'dtype': None}, {'vocab_size': '40'},
    {'vocab_size': 10 ** 9}, {'vocab_size': True}, {'tokens': 5}, {'tokens': {'train': 'x'}},
    {'tokenizer': 5}],
    ids=lambda text: str(text)[:20])
def test_a_foreign_meta_json_is_one_line(corpus, text):
    if isinstance(text, dict):
        text = json.dumps(json.loads((corpus / 'meta.json').read_text()) | text)
    (corpus / 'meta.json').write_text(text, errors='surrogatepass')
    assert 'not from prepare.py' in refused(read_corpus)


def test_a_vocabulary_that_its_tokenizer_contradicts_is_one_line(corpus):
    made = json.loads((corpus / 'meta.json').read_text())
    (corpus / 'meta.json').write_text(json.dumps(made | {'vocab_size': 60000}))
    assert 'but meta.json has 60000' in refused(set_up, '--dataset=case', '--out_dir=new')


def test_the_recipe_that_a_checkpoint_names_is_not_run(house, state):
    (house / 'evil.py').write_text(f'import os\nos.mkdir({str(house / "evil")!r})\n')
    for name in ('../evil', str(house / 'evil')):
        torch.save(state | {'config': state['config'] | {'dataset': name}}, house / 'case.pt')
        assert 'no data set or recipe' in refused(evaluate.main, ['--out_dir=case.pt'])
    assert not (house / 'evil').exists()


@counts(10, 300)
def test_no_text_breaks_prepare(house, count):
    import gzip
    line = json.dumps({'text': 'some words', 'more': [1]}).encode() + b'\n'
    files = st.one_of(
        damages(TEXT[:300].encode()).map(lambda data: ('case.txt', data)),
        damages(line * 5).map(lambda data: ('case.jsonl', data)),
        st.sampled_from([b'[' * 10 ** 5, b'{"text": "\\ud800 b"}', b'{"text": 5}', b'1' * 5000]
                        ).map(lambda data: ('case.jsonl', data)),
        damages(gzip.compress(TEXT.encode())).map(lambda data: ('case.txt.gz', data)),
        damages(b'PAR1' * 9).map(lambda data: ('case.parquet', data)))

    def read(file):
        (house / file[0]).write_bytes(file[1])
        prepare.main([f'--input={file[0]}', '--name=other', '--val_fraction=0.5'])
    fuzz(files, count, read)


# --- checkpoints ---------------------------------------------------------------------------------

@counts(15, 1200)
def test_no_bytes_of_a_checkpoint_break_what_reads_it(house, count):
    whole, path = (house / 'run' / 'best.pt').read_bytes(), house / 'case.pt'
    head = whole.index(b'version') + 200  # the pickle

    def read(data):
        path.write_bytes(data)
        take_sample(path)
    flips = st.lists(st.tuples(st.integers(0, head), st.integers(1, 255)), min_size=1, max_size=4)
    fuzz(st.one_of(damages(whole), flips.map(lambda flips: flipped(whole, flips)),
                   st.binary(max_size=50)), count, read)


def test_a_checkpoint_cut_at_any_kilobyte_is_one_line(house):
    whole, path = (house / 'run' / 'best.pt').read_bytes(), house / 'case.pt'
    for size in range(0, len(whole), 1024):
        path.write_bytes(whole[:size])
        assert 'is damaged, or was not made by folio' in refused(take_sample, path)


@counts(10, 500)
def test_no_entry_of_a_checkpoint_breaks_what_reads_it(house, state, count):
    tensors = [torch.zeros(3), torch.zeros(()), torch.full((40, 16), math.nan), torch.zeros(
        (40, 16), dtype=torch.int64), torch.zeros(1).expand(10 ** 6, 10 ** 6)]

    def read(state):
        torch.save(state, house / 'case.pt')
        load_all(house / 'case.pt')
    small = {name: value for name, value in state.items() if name != 'optimizers'}
    fuzz(mutations(small, VALUES + tensors), count, read)


@counts(5, 400)
def test_no_entry_of_a_checkpoint_breaks_a_run_that_goes_on(house, state, count):
    (house / 'case').mkdir(exist_ok=True)
    path = house / 'case' / 'ckpt.pt'
    tensors = [torch.zeros(3), torch.zeros(()), torch.ones(40, 16)]

    def read(state):
        torch.save(state, path)
        resume(path)
    fuzz(mutations(state, VALUES + tensors), count, read)


@pytest.mark.parametrize('changes', [
    {'n_layer': 'two'}, {'n_embd': 2.5}, {'n_head': None}, {'mlp': 'gelu'}, {'n_layer': 3},
    {'n_layer': 1}, {'vocab_size': 41}, {'norm_eps': ''}, {'norm_eps': math.nan},
    {'rope_theta': 'x'}, {'n_inner': -8}, {'n_head': 0}])
def test_a_config_that_its_weights_contradict_is_one_line(house, state, changes):
    torch.save(state | {'config': state['config'] | changes}, house / 'case.pt')
    for work, argv in ((sample.main, ['--out_dir=case.pt']), (evaluate.main, ['--out_dir=case.pt']),
                       (convert.main, ['--out_dir=case.pt', '--to=hf', '--dest=no'])):
        assert 'is damaged, or was not made by folio' in refused(work, argv)


@pytest.mark.parametrize('changes', [
    {'model': 5}, {'model': {}}, {'config': None}, {'config': {}}, {'tokenizer': 'gpt2'},
    {'tokenizer': {}}, {'tokenizer': {'kind': 'char'}}, {'tokenizer': {'kind': ['x']}},
    {'tokenizer': {'kind': 'char', 'chars': 'ab', 'unknown': 'c'}},
    {'tokenizer': {'kind': 'char', 'chars': '\ud800'}},
    {'tokenizer': {'kind': 'char', 'chars': ''}}, {'step': 'x'}, {'step': -1},
    {'seconds': math.nan}, {'versions': None}], ids=str)
def test_an_entry_of_the_wrong_type_is_one_line(house, state, changes):
    torch.save(state | changes, house / 'case.pt')
    refused(take_sample, 'case.pt')


def test_a_tokenizer_with_more_ids_than_its_model_is_one_line(house, state):
    torch.save(state | {'tokenizer': {'kind': 'byte'}}, house / 'case.pt')
    assert 'is damaged' in refused(take_sample, 'case.pt', '--start=zzz')
    assert 'is damaged' in refused(evaluate.main, ['--out_dir=case.pt', '--file=tiny.txt'])


def test_a_version_that_is_no_text_is_not_said(house, state, capsys):
    torch.save(state | {'versions': {'git': torch.zeros(3), 'python': 'P'}}, house / 'case.pt')
    evaluate.main(['--out_dir=case.pt', '--device=cpu', '--eval_tokens=40'])
    assert 'trained with python P\n' in capsys.readouterr().out


def test_an_option_of_the_run_that_is_none_is_one_line(house, state):
    for changes in ({'dtype': 'x'}, {'dtype': 5}, {'dataset': 5}, {'dataset': ['tiny']}):
        torch.save(state | {'config': state['config'] | changes}, house / 'case.pt')
        assert 'of the checkpoint must be' in refused(evaluate.main, ['--out_dir=case.pt'])


@pytest.mark.parametrize('changes', [
    {'optimizers': []}, {'optimizers': [{}, {}]}, {'data': {'x': 1}}, {'data': 5},
    {'sequences': -1}, {'sequences': 10 ** 30}, {'seconds': math.nan}, {'tracker': 5},
    {'step': None}])
def test_a_run_that_cannot_go_on_is_one_line(house, state, changes):
    (house / 'case').mkdir(exist_ok=True)
    torch.save(state | changes, house / 'case' / 'ckpt.pt')
    assert 'is damaged' in refused(resume, house / 'case' / 'ckpt.pt')


def test_moments_of_another_shape_are_one_line(house, state):
    (house / 'case').mkdir(exist_ok=True)
    for change in (GONE, torch.zeros(3), 'x'):
        for path in places(state['optimizers']):
            if path[-1] in ('exp_avg', 'momentum', 'step') and path[1] == 'state':
                broken = changed(state, [(('optimizers', *path), change)])
                torch.save(broken, house / 'case' / 'ckpt.pt')
                assert 'is damaged' in refused(resume, house / 'case' / 'ckpt.pt')
                break


def test_weights_that_are_no_numbers_are_one_line(house, state):
    weights = {name: tensor * math.nan for name, tensor in state['model'].items()}
    torch.save(state | {'model': weights}, house / 'case.pt')
    assert 'is damaged' in refused(take_sample, 'case.pt')


def test_code_in_a_checkpoint_is_not_run(house, state):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(house / 'evil'),)
    for name in ('model', 'config', 'tokenizer', 'optimizers', 'step', 'more'):
        torch.save(state | {name: Evil()}, house / 'case.pt')
        assert 'holds pickled code, which is not run' in refused(take_sample, 'case.pt')
    assert not (house / 'evil').exists()


def test_a_checkpoint_that_grows_when_it_is_read_is_one_line(house):
    with zipfile.ZipFile(house / 'run' / 'best.pt') as whole, zipfile.ZipFile(
            house / 'case.pt', 'w', zipfile.ZIP_DEFLATED) as packed:
        for item in whole.infolist():
            packed.writestr(item.filename, whole.read(item.filename) + b'\0' * 10 ** 6)
    assert 'is damaged, or was not made by folio' in refused(take_sample, 'case.pt')


def test_a_pipe_in_place_of_a_checkpoint_is_one_line(house):
    os.mkfifo('pipe.pt')
    assert 'no such checkpoint' in refused(take_sample, 'pipe.pt')


@counts(20, 500)
def test_no_log_breaks_what_reads_it(house, monkeypatch, count):
    (house / 'case').mkdir(exist_ok=True)
    path, line = house / 'case' / 'log.jsonl', json.loads(
        (house / 'run' / 'log.jsonl').read_text().splitlines()[-1])
    shutil.copy(house / 'run' / 'best.pt', house / 'case')
    lines = st.one_of(mutations(line).map(lambda line: json.dumps(line).encode()), st.sampled_from(
        [b'[' * 10 ** 5, b'5', b'[]', b'{}', b'{"step": "x"}', b'1' * 5000, b'\xff', b'']))

    def read(lines):
        path.write_bytes(b'\n'.join(lines))
        survives(evaluate.main, ['--compare=case,run'])
        cut_file(path, 1)
    monkeypatch.setattr(journal, 'draw_curves', lambda *rest: False)  # drawing takes long
    fuzz(st.lists(lines, min_size=1, max_size=3), count, read)


def test_a_log_without_numbers_is_one_line(house):
    (house / 'case').mkdir(exist_ok=True)
    shutil.copy(house / 'run' / 'best.pt', house / 'case')
    for record in ({}, {'tokens': 'x', 'seconds': 1.0}, {'tokens': 1, 'seconds': math.nan}):
        record |= {'step': 1, 'val_loss': 2.0, 'bits_per_byte': 3.0}
        (house / 'case' / 'log.jsonl').write_text(json.dumps(record))
        assert 'run, case is damaged' in refused(evaluate.main, ['--compare=run,case'])


# --- tokenizers ----------------------------------------------------------------------------------

def small_bpe():
    """The dict of a byte-pair encoding with one merge."""
    return bpe_spec('x', {bytes([i]): i for i in range(256)} | {b'ab': 256}, GPT2_PATTERN,
                    {'<|endoftext|>': 257})


def json_spec(**parts):
    """The dict of a tokenizer.json of three words, with other parts."""
    model = {'type': 'WordLevel', 'vocab': {'a': 0, 'b': 1, '?': 2}, 'unk_token': '?'}
    content = hf_tokenizer.to_json({'kind': 'byte'}) | {
        'pre_tokenizer': None, 'decoder': None, 'model': model} | parts
    return {'kind': 'json', 'name': 'x', 'json': json.dumps(content)}


def use_tokenizer(spec):
    """Everything that is done with a tokenizer from outside."""
    with checkpoint.damaged('case'):
        tokenizer = Tokenizer(spec)
        ids = tokenizer.encode('ab c\n').tolist()
        tokenizer.decode(ids + [tokenizer.start])
        checkpoint.name_of(spec)


@counts(30, 1000)
def test_no_dict_of_a_tokenizer_breaks_it(count):
    specs = [{'kind': 'char', 'chars': 'ab c\n?', 'unknown': '?'}, {'kind': 'byte'}, small_bpe(),
             json_spec()]
    content = mutations(json.loads(json_spec()['json'])).map(
        lambda content: {'kind': 'json', 'name': 'x', 'json': json.dumps(content)})
    fuzz(st.one_of(*map(mutations, specs), content), count, use_tokenizer)


@pytest.mark.parametrize('spec', [
    small_bpe() | {'ranks': ''}, small_bpe() | {'ranks': 'YQ== 0'}, small_bpe() | {'pattern': '('},
    small_bpe() | {'ranks': f'{small_bpe()["ranks"]}\nYWJj 256'},
    small_bpe() | {'special': {'x': 10 ** 9}},
    small_bpe() | {'pattern': 'x*'}, small_bpe() | {'pattern': '(?:a|a)*(?=b)b|(?:.|.)*(?=z)z'},
    json_spec(model={'type': 'WordLevel', 'vocab': {'a': 4 * 10 ** 9}, 'unk_token': 'a'}),
    json_spec(model={'type': 'WordLevel', 'vocab': {'a': 0}, 'unk_token': 'none'}),
    json_spec(pre_tokenizer={'type': 'FixedLength', 'length': 0}),
    json_spec(decoder={'type': 'Strip', 'content': 'a', 'start': 10 ** 6, 'stop': 10 ** 6}),
    json_spec(normalizer={'type': 'Precompiled', 'precompiled_charsmap': ''}),
], ids=lambda spec: spec['kind'])
def test_an_odd_tokenizer_is_one_line(spec):
    survives(use_tokenizer, spec)
    if 'x*' not in spec.get('pattern', '') and 'a|a' not in spec.get('pattern', ''):
        refused(use_tokenizer, spec)


def test_the_ids_in_a_file_are_not_believed_where_the_library_gives_others():
    plainly = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized'), False)
    added = [{'id': 10 ** 6, 'content': content, 'special': True, **plainly}
             for content in ('', 'x')]
    use_tokenizer(json_spec(added_tokens=added))


# --- other people's models -----------------------------------------------------------------------

@pytest.fixture
def model_folder(house):
    """A copy of the converted model's folder."""
    shutil.rmtree(house / 'case_hf', ignore_errors=True)
    return shutil.copytree(house / 'hf', house / 'case_hf')


def import_folder(folder):
    shutil.rmtree('imported', ignore_errors=True)
    convert.main([f'--from={folder}', '--out_dir=imported'])


@pytest.mark.parametrize('name', ['config.json', 'tokenizer.json'])
@counts(10, 600)
def test_no_json_breaks_the_converter(model_folder, count, name):
    path = model_folder / name
    made = json.loads(path.read_text())

    def read(text):
        path.write_bytes(text)
        import_folder(model_folder)
    texts = mutations(made).map(lambda made: json.dumps(made).encode())
    fuzz(st.one_of(texts, texts, damages(path.read_bytes())), count, read)


@counts(10, 700)
def test_no_safetensors_break_the_converter(model_folder, count):
    path = model_folder / 'model.safetensors'
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], 'little')
    header = json.loads(whole[8:8 + size])

    def packed(header):
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, 'little') + text + whole[8 + size:]

    def read(data):
        path.write_bytes(data)
        import_folder(model_folder)
    kinds = ['F16', 'BF16', 'I64', 'U8', 'BOOL', 'F8_E4M3', 'F64', 'U16', 'C64', 'F4']
    fuzz(st.one_of(damages(whole), damages(whole[:size + 8]).map(lambda head: head + whole[size:]),
                   mutations(header, [*VALUES, *kinds]).map(packed)), count, read)


# --- prompts -------------------------------------------------------------------------------------

@counts(15, 500)
def test_no_prompt_breaks_a_sample(house, state, count):
    for name, spec in (('byte', {'kind': 'byte'}), ('bpe', small_bpe()), ('json', json_spec())):
        odd = changed(state, [(('tokenizer',), spec)])
        odd['config']['vocab_size'] = 300
        for weight in ('wte.weight', 'lm_head.weight'):
            odd['model'][weight] = torch.zeros(300, 16)
        torch.save(odd, house / f'{name}.pt')
    texts = st.one_of(st.text(max_size=40), st.sampled_from(WORDS), st.text(
        st.characters(categories=['Cs', 'Cc', 'Zs', 'Mn']), max_size=9), st.sampled_from(
            ['a' * 10 ** 5, ' ' * 10 ** 5, '\n' * 10 ** 5, "'" * 10 ** 5, '🤖' * 10 ** 4]))
    case = st.tuples(st.sampled_from(['run', 'byte.pt', 'bpe.pt', 'json.pt']), texts)
    fuzz(case, count, lambda case: case[1] == '-' or take_sample(case[0], f'--start={case[1]}'))


@pytest.mark.parametrize('start, message', [
    ('\ud800', 'surrogates not allowed'), ('\udcff', "can't decode"), ('FILE:\0', 'null byte'),
    ('FILE:/', 'directory'), ('FILE:/dev/zero', 'a prompt has 16,777,216 bytes at most'),
    ('FILE:' + 'a' * 300, 'too long'), ('-', 'a prompt has 16,777,216 bytes at most')])
def test_a_prompt_that_is_no_text_is_one_line(house, monkeypatch, start, message):
    with open('/dev/zero', 'rb') as endless:
        monkeypatch.setattr(sys, 'stdin', SimpleNamespace(buffer=endless))
        assert message in refused(take_sample, 'run', f'--start={start}')


def test_a_long_stop_costs_no_more_than_the_text(house):
    text = sample.Continuation(Tokenizer({'kind': 'byte'}), [], 'a' * 10 ** 6 + 'b')
    for _ in range(100):
        text.add(ord('a'))
        assert survives(text.take) == ''
    assert text.rest() == 'a' * 100


# --- memory and processes ------------------------------------------------------------------------

ABSURD = """
import json, resource, sys
import folio.options, sample, train
from pathlib import Path
from folio.cli import UserError
from folio.machine import open_machine
from tools import convert, evaluate
import torch
home = Path(sys.argv[1])
folio.options.ROOT = home
state = torch.load('run/ckpt.pt', weights_only=True)
hf = json.loads(Path('hf/config.json').read_text())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

def attempt(what, main, *argv):
    try:
        main(list(argv))
        print(what, 'was taken')
    except (UserError, OSError, MemoryError) as error:
        pass

def start(argv):
    with open_machine(train.TrainConfig) as machine:
        options = folio.options.parse(train.TrainConfig, ['--device=cpu', '--dataset=tiny', *argv])
        train.set_up(*options, machine)

Path('absurd').mkdir()
for name, value in json.loads(sys.argv[2]):
    changed = state | {'config': state['config'] | {name: value}}
    if name == 'expand':
        weights = {key: torch.zeros(1).expand(40 * value, 16 * value) for key in state['model']}
        changed = state | {'model': weights, 'config': state['config'] | {
            'n_embd': 16 * value, 'vocab_size': 40 * value, 'n_layer': 0}}
    if name == 'share':
        shared = {key: value for key, value in state['model'].items() if 'blocks' not in key} | {
            key.replace('.0.', f'.{i}.'): tensor for key, tensor in state['model'].items()
            if '.0.' in key for i in range(value)}
        changed = state | {'model': shared, 'config': state['config'] | {'n_layer': value}}
    if name == 'special':
        changed = state | {'tokenizer': {'kind': 'bpe', 'name': 'x', 'pattern': 'x',
                                         'ranks': 'YQ== 0', 'special': {'x': value}}}
    torch.save(changed, 'absurd/ckpt.pt')
    attempt((name, value), sample.main, '--out_dir=absurd', '--max_new_tokens=1', '--device=cpu')
    attempt((name, value), evaluate.main, '--out_dir=absurd', '--eval_tokens=40', '--device=cpu')
    attempt((name, value), convert.main, '--out_dir=absurd', '--to=hf', f'--dest=no')
    attempt((name, value), start, '--init_from=absurd', '--out_dir=new')
    attempt((name, value), start, '--resume=True', '--out_dir=absurd')
for name, value in json.loads(sys.argv[3]):
    Path('hf/config.json').write_text(json.dumps(hf | {name: value}))
    attempt((name, value), convert.main, '--from=hf', '--out_dir=new')
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print('more', (peak - before) // 1024)
"""


@pytest.mark.slow
def test_absurd_shapes_are_refused_before_they_take_memory(house, tmp_path):
    home = tmp_path
    for name in ('data', 'run', 'hf'):
        shutil.copytree(house / name, home / name)
    shapes = [['n_layer', 10 ** 9], ['n_layer', 4000], ['n_embd', 10 ** 7], ['n_embd', 10 ** 15],
              ['vocab_size', 10 ** 9], ['block_size', 10 ** 9], ['block_size', 10 ** 18],
              ['n_inner', 10 ** 8], ['n_head', 10 ** 7], ['expand', 1000], ['share', 50],
              ['special', 10 ** 9]]
    theirs = [['num_hidden_layers', 10 ** 9], ['hidden_size', 10 ** 7], ['hidden_size', 10 ** 15],
              ['vocab_size', 10 ** 9], ['max_position_embeddings', 10 ** 9],
              ['intermediate_size', 10 ** 9], ['num_attention_heads', 10 ** 9]]
    code = subprocess.run(
        [sys.executable, '-c', ABSURD, home, json.dumps(shapes), json.dumps(theirs)], cwd=home,
        env=ENVIRONMENT | {'PYTHONPATH': str(REPOSITORY)}, capture_output=True, text=True,
        timeout=120)
    assert code.returncode == 0, code.stderr
    assert 'was taken' not in code.stdout
    assert int(code.stdout.split()[-1]) < 500, 'MB'


def run_script(checkout, *argv, environment=None, **more):
    """A script as a process: its exit code and what it says; a traceback is a fault."""
    environment = ENVIRONMENT if environment is None else environment
    result = subprocess.run([sys.executable, *argv], cwd=checkout, env=environment, text=True,
                            capture_output=True, timeout=120, **more)
    assert 'Traceback' not in result.stderr, result.stderr
    return result.returncode, result.stdout + result.stderr


BARE = {'PATH': os.environ['PATH']}


def test_prepare_needs_neither_a_home_nor_docstrings(checkout):
    for argv in (['-OO', 'prepare.py', '--help'], ['prepare.py', '--help'], [
            'prepare.py', '--input=tiny.txt', '--name=bare', '--tokenizer=byte']):
        assert run_script(checkout, *argv, environment=BARE | {'RANK': '0'})[0] == 0


def test_a_closed_standard_input_is_empty(checkout):
    code, text = run_script(checkout, '-c', 'import os, subprocess, sys; os.close(0); sys.exit('
                            'subprocess.run([sys.executable, "prepare.py", "--input=-", '
                            '"--name=none"], close_fds=False).returncode)')
    assert code == 1 and 'too few to split' in text


@pytest.mark.slow
@pytest.mark.parametrize('script', SCRIPTS)
def test_help_needs_neither_a_home_nor_docstrings(checkout, script):
    assert run_script(checkout, '-OO', script, '--help', environment=BARE | {'RANK': '0'})[0] == 0


@pytest.mark.slow
def test_a_refusal_is_one_line_of_a_process(checkout):
    code, text = run_script(checkout, 'sample.py', '--out_dir=a\nb', environment=BARE)
    assert code == 1 and text.count('\n') == 1 and text.startswith('error: ')


@pytest.mark.slow
def test_a_run_needs_no_home_and_no_other_processes(checkout):
    run_script(checkout, 'prepare.py', '--input=tiny.txt', '--name=tiny')
    environment = BARE | {'RANK': '0', 'OMP_NUM_THREADS': '1'}
    argv = [*TINY, '--max_steps=2', '--out_dir=bare']
    assert run_script(checkout, 'train.py', *argv, environment=environment)[0] == 0
    for script in ('sample.py', 'tools/evaluate.py'):
        assert run_script(checkout, script, '--out_dir=bare', environment=environment)[0] == 0


@pytest.mark.slow
def test_an_environment_that_is_no_launcher_is_one_line(checkout):
    odd = {'RANK': 'x', 'WORLD_SIZE': '2', 'MASTER_ADDR': 'localhost', 'MASTER_PORT': 'y'}
    code, text = run_script(checkout, 'train.py', *TINY, environment=ENVIRONMENT | odd)
    assert code == 1 and 'could not meet' in text
