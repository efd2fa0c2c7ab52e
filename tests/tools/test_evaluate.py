"""Numbers about a checkpoint: those that training logged, of a text, of several runs."""

import json
import math
import re
import shutil

import pytest
import torch
from conftest import TEXT, TINY
from ranks import run_together

import folio.options
import prepare
import train
from folio.checkpoint import load
from folio.cli import UserError
from folio.journal import read_log
from folio.tokenizer import Tokenizer, bpe_spec
from model import from_checkpoint
from prepare import open_corpus
from tools import evaluate


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    """A folder that stands for the repository's, with the corpora tiny and bytes and a run."""
    folder = tmp_path_factory.mktemp('home')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folio.options, 'ROOT', folder)
        patch.chdir(folder)
        (folder / 'tiny.txt').write_text(TEXT, encoding='utf-8')
        prepare.main(['--input=tiny.txt', '--tokenizer=char', '--name=tiny'])
        prepare.main(['--input=tiny.txt', '--tokenizer=byte', '--name=bytes'])
        train.main([*TINY, '--max_steps=300', '--learning_rate=1e-2', '--eval_interval=100',
                    '--out_dir=run'])
        yield folder


@pytest.fixture
def trained(home, capsys):
    """A function that evaluates the run: what is printed as JSON."""
    def numbers(*argv):
        evaluate.main(['--out_dir=run', '--device=cpu', '--dtype=float32', '--json', *argv])
        return json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    return numbers


def test_a_run_is_measured_in_its_own_number_format(home, capsys):
    train.main([*TINY, '--max_steps=20', '--dtype=float32', '--out_dir=exact'])
    *_, last = read_log(home / 'exact')
    losses = []
    for more in ([], ['--dtype=bfloat16']):
        capsys.readouterr()
        evaluate.main(['--out_dir=exact', '--device=cpu', '--json', *more])
        losses.append(json.loads(capsys.readouterr().out)['loss'])
    assert losses[0] == pytest.approx(last['val_loss'], abs=1e-9) != losses[1]


def test_the_loss_is_the_one_that_training_logged(trained, home):
    logged = min(r['val_loss'] for r in read_log(home / 'run') if 'val_loss' in r)
    numbers = trained()
    assert numbers.keys() == {'loss', 'perplexity', 'bits_per_byte', 'accuracy', 'top5_accuracy',
                              'tokens', 'seconds'}
    assert numbers['loss'] == pytest.approx(logged, abs=1e-9)
    assert numbers['tokens'] == len(open_corpus('tiny')[1]) - 1
    assert trained('--split=train')['tokens'] == len(open_corpus('tiny')[0]) - 1
    assert trained('--eval_tokens=100')['tokens'] == 99


def test_a_longer_past_helps_a_model_that_has_learned(trained):
    assert trained('--stride=4')['loss'] < trained()['loss'] < trained('--context=2')['loss']


def test_a_file_is_measured_as_a_split_and_its_lines_add_up(trained, home):
    _, val, meta = open_corpus('tiny')
    text = Tokenizer(meta['tokenizer']).decode(val.read(0, len(val)))
    (home / 'val.txt').write_bytes(text.encode())
    split, file = trained(), trained('--file=val.txt', '--per_line')
    lines = file.pop('lines')
    assert file | {'seconds': 0} == split | {'seconds': 0}
    assert [line['text'] for line in lines] == text.split('\n')[:-1]
    assert [line['tokens'] for line in lines] == [
        len(line) + 1 - (i == 0) for i, line in enumerate(text.split('\n')[:-1])]
    total = sum(line['loss'] * line['tokens'] for line in lines)
    assert total == pytest.approx(file['loss'] * file['tokens'])


RANKS = {token: i for i, token in enumerate([*(bytes([i]) for i in range(256)), b'\n\n', b'b\n'])}


@pytest.mark.parametrize('spec, text, lines', [
    ({'kind': 'byte'}, 'a\n\nä b\n', [0, 0, 1, 2, 2, 2, 2, 2]),
    (bpe_spec('own', RANKS, '(?s).+', {}), 'a\n\nab\nc', [0, 0, 2, 2, 3]),
    ({'kind': 'char', 'chars': '\nab\ufffd', 'unknown': '\ufffd'}, 'éé\nab\nüa\n',
     [0, 0, 0, 1, 1, 1, 2, 2, 2])], ids=['byte', 'bpe', 'unknown characters'])
def test_a_token_is_of_the_line_that_it_begins_in(spec, text, lines):
    tokenizer = Tokenizer(spec)
    ids = tokenizer.encode(text)
    assert evaluate.line_numbers(text, ids, tokenizer).tolist() == lines


def test_what_a_person_reads_has_the_same_numbers(trained, capsys):
    numbers = trained()
    evaluate.main(['--out_dir=run', '--device=cpu', '--dtype=float32'])
    printed = capsys.readouterr().out
    assert f'{numbers["loss"]:.4f} nats per token' in printed
    assert f'{numbers["top5_accuracy"]:.2%}' in printed and f'{numbers["tokens"]:,}' in printed


def test_numbers_that_json_has_no_word_for_are_null(monkeypatch, trained):
    numbers = {'a': math.inf, 'b': [{'c': math.nan}], 'd': 1.5}
    monkeypatch.setattr(evaluate, 'evaluate', lambda *_: numbers)
    assert trained() == {'a': None, 'b': [{'c': None}], 'd': 1.5}


def test_lines_need_tokens_that_keep_newlines():
    tokenizer = Tokenizer({'kind': 'char', 'chars': 'ab?', 'unknown': '?'})
    with pytest.raises(UserError, match="--per_line: .* don't keep all newlines"):
        evaluate.line_numbers('a\nb', tokenizer.encode('a\nb'), tokenizer)


@pytest.mark.parametrize('argv, message', [
    (['--dataset=bytes'], 'the tokens of bytes are bytes, those of the checkpoint .* characters'),
    (['--dataset=nothing'], 'no data set or recipe is called nothing'),
    (['--out_dir=nowhere'], 'no such checkpoint'),
    (['--file=nowhere.txt'], 'nowhere.txt'), (['--file=empty.txt'], 'empty.txt is too short'),
    (['--file=latin.txt'], 'latin.txt'), (['--file=other.txt'], "no character 'Ä'"),
    (['--context=17'], 'context must be from 1 to 16'), (['--stride=0'], 'stride must be .* >= 1'),
    (['--context=4', '--stride=5'], 'stride .*from 1 to 4'),
    (['--eval_tokens=1'], "eval_tokens must be .* >= 2, not '1'"),
    (['--per_line'], '--per_line needs --file'),
    (['--task=lambada'], r'lambada\.py'),
    (['--task=lambada', '--file=empty.txt'], 'empty.txt has no passages'),
    (['--task=lambada', '--file=field.jsonl'], r'field.jsonl, line 3: no text is'),
    (['--task=lambada', '--file=tiny.txt'], 'tiny.txt, line 1: no text is'),
    (['--task=lambada', '--file=word.jsonl'], 'word.jsonl, passage 1: .* no word before it'),
    (['--task=lambada', '--file=char.jsonl'], 'char.jsonl, passage 1: the vocabulary has no'),
    (['--task=lambada', '--file=long.jsonl'], 'long.jsonl, passage 1: .* fills the context'),
    (['--compare=run,nowhere'], 'nowhere: there is no log.jsonl'),
])
def test_what_cannot_be_measured_is_one_line(trained, home, argv, message):
    for name, content in (('empty.txt', b''), ('latin.txt', b'\xff'), ('other.txt', b'\xc3\x84'),
                          ('field.jsonl', b'{"text": "the fox"}\n\n{"txt": "the fox"}\n'),
                          ('word.jsonl', b'{"text": "fox"}'), ('char.jsonl', b'{"text": "the F"}'),
                          ('long.jsonl', b'{"text": "the foxfoxfoxfoxfoxfox"}')):
        (home / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        trained(*argv)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('tokenizer', ['byte', 'gpt2', 'bpe:300'])
def test_another_data_set_whose_tokens_are_others_is_not_prepared_first(trained, home, tokenizer):
    (home / 'data/huge.py').write_text(f"input = 'tiny.txt'\ntokenizer = '{tokenizer}'\n")
    with pytest.raises(UserError, match=f'huge are of the kind {tokenizer}, .* of the kind char'):
        trained('--dataset=huge')
    with pytest.raises(UserError, match='of the kind char'):
        train.main([*TINY, '--dataset=huge', '--init_from=run', '--out_dir=new'])
    assert not (home / 'data/huge').exists()
    (home / 'data/huge.py').write_text("input = 'tiny.txt'\n")
    assert trained('--dataset=huge')['tokens'] == trained()['tokens']
    shutil.rmtree(home / 'data/huge')
    (home / 'data/huge.py').unlink()


def test_a_bare_word_is_the_run_to_be_measured(home, trained, capsys):
    loss = trained()['loss']
    evaluate.main(['run', '--device=cpu', '--dtype=float32', '--json'])
    assert json.loads(capsys.readouterr().out)['loss'] == loss


def test_a_model_without_a_tokenizer_is_measured_on_no_text(home):
    torch.save(load('run') | {'tokenizer': None}, home / 'mute.pt')
    with pytest.raises(UserError, match="mute.pt has no tokenizer, so it can't read a text"):
        evaluate.main(['--out_dir=mute.pt', '--device=cpu', '--file=tiny.txt'])


def test_two_processes_measure_what_one_does(checkout, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(folio.options, 'ROOT', checkout)
    monkeypatch.chdir(checkout)
    (tmp_path / 'some.jsonl').write_text(
        ''.join(json.dumps({'text': line}) + '\n' for line in TEXT.splitlines()[:20]))
    prepare.main(['--input=tiny.txt', '--tokenizer=char', '--name=measured'])
    train.main([*TINY, '--dataset=measured', '--max_steps=3', '--out_dir=measured'])
    for more in ([], ['--task=lambada', f'--file={tmp_path}/some.jsonl']):
        argv = ['--out_dir=measured', '--device=cpu', '--json', *more]
        capsys.readouterr()
        evaluate.main(argv)
        one = json.loads(capsys.readouterr().out)
        said = run_together(checkout, 2, *argv, main=evaluate.main)
        two = json.loads(next(line for line in said.splitlines() if line.startswith('{')))
        assert two == pytest.approx(one | {'seconds': two['seconds']})


# --- LAMBADA -------------------------------------------------------------------------------------


def test_a_word_that_is_learned_by_heart_is_right(home, capsys):
    (home / 'some.jsonl').write_text('{"text": "the quick brown fox"}\n{"text": "jumps over it"}\n')
    evaluate.main(['--out_dir=run', '--device=cpu', '--task=lambada', '--file=some.jsonl'])
    printed = capsys.readouterr().out
    assert '50.00%' in printed and '1 passages are longer than 16 tokens' in printed


def test_without_a_file_the_passages_are_the_recipe_s(home, capsys, monkeypatch):
    monkeypatch.setenv('DATA_MIRROR', str(home))
    (home / 'data' / 'lambada.py').write_text("url = 'https://passages.invalid/mirrored.jsonl'\n")
    (home / 'mirrored.jsonl').write_text('{"text": "the quick brown fox"}\n')
    evaluate.main(['--out_dir=run', '--device=cpu', '--task=lambada'])
    assert re.search(r'accuracy +100.00%.*passages +1\n', capsys.readouterr().out, re.DOTALL)
    (home / 'data' / 'lambada.py').unlink()


# --- several runs --------------------------------------------------------------------------------

def test_runs_are_compared_in_a_table_and_a_picture(trained, home, capsys):
    train.main([*TINY, '--max_steps=4', '--eval_interval=2', '--n_layer=1', '--out_dir=small'])
    capsys.readouterr()
    evaluate.main(['--compare=run,small', '--picture=both.png'])
    lines = capsys.readouterr().out.splitlines()
    for line, folder in zip(lines[2:4], ('run', 'small'), strict=True):
        best = min(r['val_loss'] for r in read_log(home / folder) if 'val_loss' in r)
        model = from_checkpoint(load(folder))
        assert line.startswith(f'| {folder} | {sum(p.numel() for p in model.parameters()):,} |')
        assert f'| {best:.4f} |' in line
    assert lines[4] == 'the curves: both.png'
    assert (home / 'both.png').read_bytes().startswith(b'\x89PNG')
    with pytest.raises(UserError, match='both.xyz could not be drawn'):
        evaluate.main(['--compare=run,small', '--picture=both.xyz'])


def test_any_name_of_a_run_can_stand_in_a_picture(home):
    for name in ('_a', 'a$b_{$'):
        train.main([*TINY, '--max_steps=2', f'--out_dir={name}'])
    evaluate.main(['--compare=_a,a$b_{$', '--picture=both.png'])
    assert (home / 'both.png').stat().st_size > 1000
