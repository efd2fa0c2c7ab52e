"""Measuring: against a token-by-token computation, train.py and `transformers`."""

import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ENVIRONMENT, REPOSITORY, TEXT, TINY

import config
import evaluate
import evaluation
import lambada
import prepare
import run
import train
from corpus import open_corpus
from evaluation import measure, score, summary
from machine import Machine
from model import GPT, GPTConfig
from script import UserError
from tokenizer import Tokenizer, bpe_spec

CPU = Machine(torch.device('cpu'))


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    """A folder that stands for the repository's, with the corpora tiny and bytes and a run."""
    folder = tmp_path_factory.mktemp('home')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, 'ROOT', folder)
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


def one_by_one(model, ids, context, stride):
    """The sums of `measure`, each prediction with the past that its window gives it."""
    nats = right = among_5 = 0
    for i in range(1, len(ids)):
        window = max(0, -(-(i - context) // stride))  # the first that reaches so far
        past = torch.tensor([ids[window * stride:i]])
        logits = model(past)[0, -1].double()
        nats -= logits.log_softmax(-1)[ids[i]].item()
        order = logits.argsort(descending=True).tolist()
        right += order[0] == ids[i]
        among_5 += ids[i] in order[:5]
    return nats, right, among_5


@pytest.mark.parametrize('limit', [None, 2, 16, 17, 18, 50])
@pytest.mark.parametrize('context, stride', [(None, None), (16, 4), (5, 5), (7, 3), (1, 1)])
@torch.no_grad()
def test_each_token_is_predicted_once_with_its_window_s_past(
        home, monkeypatch, limit, context, stride):
    _, tokens, meta = open_corpus('tiny')
    tokenizer = Tokenizer(meta['tokenizer'])
    lengths = torch.tensor([len(token) for token in tokenizer.token_bytes])
    tokens = evaluate.Text(tokens.read(0, 150))
    model = GPT(GPTConfig(16, meta['vocab_size'], n_layer=1, n_embd=16)).eval()
    ids = tokens.ids[:limit].tolist()
    nats, right, among_5 = one_by_one(model, ids, context or 16, stride or 16)
    monkeypatch.setattr(evaluation, 'sequences_at_once', lambda length, vocab_size: 3)
    numbers = summary(measure(model, tokens, CPU, limit, lengths, context, stride)[0])
    count = len(ids) - 1
    assert numbers['tokens'] == count and numbers['loss'] == pytest.approx(nats / count, abs=1e-5)
    assert numbers['perplexity'] == pytest.approx(math.exp(nats / count), rel=1e-4)
    assert numbers['bits_per_byte'] == pytest.approx(
        nats / math.log(2) / lengths[ids[1:]].sum().item(), abs=1e-5)
    assert (numbers['accuracy'], numbers['top5_accuracy']) == (right / count, among_5 / count)


def test_of_equal_logits_the_lower_id_comes_first():
    logits = torch.zeros(8, 8, dtype=torch.bfloat16)
    assert score(logits, torch.arange(8))[1].tolist() == list(range(8))


def test_what_is_no_number_is_never_right():
    nats, ranks = score(torch.full((2, 8), math.nan), torch.tensor([0, 3]))
    assert nats.isnan().all() and ranks.tolist() == [8, 8]
    assert math.isnan(evaluation.perplexity(math.nan)) and evaluation.perplexity(1e4) == math.inf


def test_a_run_is_measured_in_its_own_number_format(home, capsys):
    train.main([*TINY, '--max_steps=20', '--dtype=float32', '--out_dir=exact'])
    *_, last = run.read_log(home / 'exact')
    losses = []
    for more in ([], ['--dtype=bfloat16']):
        capsys.readouterr()
        evaluate.main(['--out_dir=exact', '--device=cpu', '--json', *more])
        losses.append(json.loads(capsys.readouterr().out)['loss'])
    assert losses[0] == pytest.approx(last['val_loss'], abs=1e-9) != losses[1]


def test_the_loss_is_the_one_that_training_logged(trained, home):
    logged = min(r['val_loss'] for r in run.read_log(home / 'run') if 'val_loss' in r)
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


def test_numbers_that_json_has_no_word_for_are_null():
    assert evaluate.finite({'a': math.inf, 'b': [{'c': math.nan}], 'd': 1.5}) == {
        'a': None, 'b': [{'c': None}], 'd': 1.5}


@pytest.mark.parametrize('argv, message', [
    (['--dataset=bytes'], 'the tokens of bytes are bytes, those of the checkpoint .* characters'),
    (['--dataset=nothing'], 'no data set or recipe is called nothing'),
    (['--out_dir=nowhere'], 'no such checkpoint'),
    (['--file=nowhere.txt'], 'nowhere.txt'), (['--file=empty.txt'], 'empty.txt is too short'),
    (['--file=latin.txt'], 'latin.txt'), (['--file=other.txt'], "no character 'Ä'"),
    (['--context=17'], 'context must be from 1 to 16'), (['--stride=0'], 'stride must be from 1'),
    (['--context=4', '--stride=5'], 'stride must be from 1 to 4'),
    (['--eval_tokens=1'], 'eval_tokens must be at least 2, not 1'),
    (['--per_line'], '--per_line needs --file'),
    (['--file=tiny.txt', '--split=train'], '--split means nothing with --file=tiny.txt'),
    (['--task=lambada', '--file=word.jsonl', '--stride=2'], '--stride means nothing with --task'),
    (['--task=lambada'], r'lambada\.py'),
    (['--task=lambada', '--file=empty.txt'], 'empty.txt has no passages'),
    (['--task=lambada', '--file=field.jsonl'], r'field.jsonl, line 3 is no JSON object with a "te'),
    (['--task=lambada', '--file=tiny.txt'], 'tiny.txt, line 1 is no JSON object'),
    (['--task=lambada', '--file=word.jsonl'], 'word.jsonl, line 1: no word stands before the last'),
    (['--task=lambada', '--file=char.jsonl'], 'char.jsonl, line 1: the vocabulary has no char'),
    (['--task=lambada', '--file=long.jsonl'], 'long.jsonl, line 1: the last word alone fills the'),
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


def test_two_processes_measure_what_one_does(checkout, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(config, 'ROOT', checkout)
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
        process = subprocess.run(
            [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2',
             'evaluate.py', *argv], capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
        assert process.returncode == 0, process.stderr
        two = json.loads(process.stdout)
        assert two == pytest.approx(one | {'seconds': two['seconds']})


# --- LAMBADA -------------------------------------------------------------------------------------

def test_lambada_agrees_with_transformers_passage_by_passage(tmp_path, monkeypatch):
    transformers = pytest.importorskip('transformers')
    torch.manual_seed(1)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=4, n_positions=48, n_embd=16, n_layer=2, n_head=2)).eval()
    ours = GPT(GPTConfig(48, 4, 2, 2, n_embd=16, position='learned', norm='layernorm',
                         norm_weight=True, mlp='gelu', qk_norm=False, bias=True)).eval()
    names = {'wte': 'wte', 'wpe': 'wpe', 'norm': 'ln_f'}
    state = {f'{a}.{kind}': theirs.transformer.state_dict()[f'{b}.{kind}'] for a, b in names.items()
             for kind in ('weight', 'bias') if f'{b}.{kind}' in theirs.transformer.state_dict()}
    parts = {'norm1': 'ln_1', 'attention.qkv': 'attn.c_attn', 'attention.proj': 'attn.c_proj',
             'norm2': 'ln_2', 'mlp.up': 'mlp.c_fc', 'mlp.proj': 'mlp.c_proj'}
    for i, layer in enumerate(theirs.transformer.h):
        for a, b in parts.items():
            for kind in ('weight', 'bias'):
                value = layer.get_parameter(f'{b}.{kind}')
                state[f'blocks.{i}.{a}.{kind}'] = value.T if value.dim() == 2 else value
    ours.load_state_dict(state | {'lm_head.weight': state['wte.weight']})

    draw = np.random.default_rng(1)
    texts = [''.join(draw.choice(list('abc '), draw.integers(2, 70))) for _ in range(200)]
    texts = [f'a{text} {"abc"[i % 3]}' for i, text in enumerate(texts)]
    tokenizer = Tokenizer({'kind': 'char', 'chars': ' abc'})
    nats = right = cut = 0
    for text in texts:
        word = text.rsplit(' ', 1)[1]
        ids = [' abc'.index(char) for char in text]
        cut += len(ids) > 49
        ids = torch.tensor([ids[-49:]])
        with torch.no_grad():
            logits = theirs(ids[:, :-1]).logits[0, -1 - len(word):]
        target = ids[0, -1 - len(word):]
        nats -= logits.log_softmax(-1).gather(-1, target[:, None]).sum().item()
        right += bool((logits.argmax(-1) == target).all())
    path = tmp_path / 'some.jsonl'
    path.write_text(''.join(json.dumps({'text': text}) + '\n' for text in texts))
    monkeypatch.setattr(lambada, 'sequences_at_once', lambda length, vocab_size: 7)
    numbers = lambada.lambada(ours, tokenizer, path, None, CPU)
    assert 0 < right < len(texts) and 0 < cut < len(texts)
    assert numbers['perplexity'] == pytest.approx(math.exp(nats / len(texts)), rel=1e-4)
    assert numbers['accuracy'] == right / len(texts)
    assert (numbers['passages'], numbers['cut']) == (len(texts), cut)


def test_the_batches_of_passages_hold_each_once_and_little_padding(monkeypatch):
    lengths = np.random.default_rng(1).integers(1, 500, 2000).tolist()
    parts = list(lambada.by_length(lengths, 50257))
    assert sorted(i for part in parts for i in part) == list(range(2000))
    for part in parts:
        longest = max(lengths[i] for i in part)
        assert len(part) * longest <= 2 ** 27 / 50257
        assert sum(lengths[i] for i in part) >= 0.9 * len(part) * longest


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
        best = min(r['val_loss'] for r in run.read_log(home / folder) if 'val_loss' in r)
        model, _ = run.load_model(folder)
        assert line.startswith(f'| {folder} | {sum(p.numel() for p in model.parameters()):,} |')
        assert f'| {best:.4f} |' in line
    assert lines[4] == 'the curves: both.png'
    assert (home / 'both.png').read_bytes().startswith(b'\x89PNG')
    with pytest.raises(UserError, match='both.xyz could not be drawn'):
        evaluate.main(['--compare=run,small', '--picture=both.xyz'])


def test_no_core_file_imports_evaluate():
    for path in REPOSITORY.glob('*.py'):
        assert not re.search(r'(?m)^(from|import) evaluate\b', path.read_text(encoding='utf-8'))
