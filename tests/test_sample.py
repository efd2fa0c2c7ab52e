"""Text out of a checkpoint: streamed, in batches, stopped, and refused."""

import io
import os
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY

import prepare
import sample
import train
from folio.cli import UserError
from folio.tokenizer import Tokenizer


@pytest.fixture
def trained(home, capsys):
    train.main([*TINY, '--max_steps=40', '--learning_rate=1e-2', '--out_dir=run'])
    capsys.readouterr()

    def run(*argv):
        sample.main(['--out_dir=run', '--device=cpu', *argv])
        return capsys.readouterr().out
    return run


def test_a_sample_begins_with_its_prompt_and_repeats_with_its_seed(trained):
    first = trained('--start=the quick', '--max_new_tokens=50')
    assert first.startswith('the quick') and len(first) == 9 + 50 + 1
    assert trained('--start=the quick', '--max_new_tokens=50') == first
    assert trained('--start=the quick', '--max_new_tokens=50', '--seed=2') != first


@pytest.mark.parametrize('tokenizer', ['byte', 'gpt2'])
def test_every_tokenizer_takes_a_prompt(home, capsys, tokenizer):
    if tokenizer == 'gpt2' and 'TIKTOKEN_CACHE_DIR' not in os.environ:
        pytest.skip('needs TIKTOKEN_CACHE_DIR')
    prepare.main(['--input=tiny.txt', f'--tokenizer={tokenizer}', '--name=other'])
    train.main([*TINY, '--dataset=other', '--max_steps=2', '--out_dir=run'])
    sample.main(['--out_dir=run', '--device=cpu', '--start=Grüße 世', '--max_new_tokens=1'])
    assert 'Grüße 世' in capsys.readouterr().out


def test_greedy_samples_are_the_same_alone_and_in_a_batch(trained):
    alone = trained('--start=fox', '--temperature=0', '--max_new_tokens=20')
    batch = trained('--start=fox', '--temperature=0', '--max_new_tokens=20', '--num_samples=3')
    assert batch == (alone + '---\n') * 3


def test_prompts_come_from_files_and_the_standard_input(trained, home, monkeypatch):
    (home / 'prompt.txt').write_bytes(b'lazy\ndogs')
    assert trained('--start=FILE:prompt.txt', '--max_new_tokens=1').startswith('lazy\ndogs')
    monkeypatch.setattr(sys, 'stdin', SimpleNamespace(buffer=io.BytesIO(b'over 3')))
    assert trained('--start=-', '--max_new_tokens=1').startswith('over 3')


def test_a_prompt_is_taken_as_it_stands_or_with_escapes_read(trained, monkeypatch):
    monkeypatch.setattr(Tokenizer, 'encode', lambda self, text: [1])
    for start, plain in ((r'$\theta \nabla$', '$\theta \nabla$'), (r'a\\nb\x', 'a\\nb\\x')):
        assert trained(f'--start={start}', '--max_new_tokens=0') == f'{start}\n'
        assert trained(f'--start={start}', '--max_new_tokens=0', '--escape') == f'{plain}\n'


def test_escapes_in_a_stop_text_are_always_read(trained):
    argv = ['--start=fox', '--temperature=2', '--max_new_tokens=300']
    whole = trained(*argv)
    assert whole.count('\n') > 1
    assert trained(*argv, r'--stop=\n') == whole.partition('\n')[0] + '\n'


def test_a_prompt_is_read_as_data_are(home, capsys, monkeypatch, trained):
    typed = '\ufefflazy\r\ndogs\r\n'.encode()
    (home / 'prompt.txt').write_bytes(typed)
    monkeypatch.setattr(sys, 'stdin', SimpleNamespace(buffer=io.BytesIO(typed)))
    for start in ('FILE:prompt.txt', '-'):
        sample.main(['run', '--device=cpu', f'--start={start}', '--max_new_tokens=0'])
        out, err = capsys.readouterr()
        assert out == 'lazy\ndogs\n\n' and err == 'the prompt: 2 \\r\\n became \\n\n'


def test_a_bare_word_is_the_run(home, capsys, trained):
    shown = trained('--max_new_tokens=9')
    sample.main(['run', '--device', 'cpu', '--max_new_tokens', '9'])
    assert capsys.readouterr().out == shown
    with pytest.raises(UserError, match='elsewhere: there is no such checkpoint'):
        sample.main(['elsewhere'])


def test_a_longer_prompt_than_the_context_is_said(home, capsys, trained):
    sample.main(['--out_dir=run', '--device=cpu', '--start=' + 'the ' * 10, '--max_new_tokens=3'])
    assert '40 tokens; the model sees the last 16' in capsys.readouterr().err


def test_a_sample_goes_on_far_beyond_the_context(trained):
    assert len(trained('--max_new_tokens=1000')) == 1001


@pytest.mark.parametrize('argv, message', [
    (['--temperature=-0.1'], 'temperature must be .* >= 0'), (['--top_k=0'], 'top_k must be'),
    (['--top_p=0'], 'top_p must be'), (['--top_p=1.1'], 'top_p must be'),
    (['--min_p=2'], 'min_p'), (['--repetition_penalty=0'], 'repetition_penalty'),
    (['--num_samples=0'], 'num_samples'), (['--start=Ä'], r"no character 'Ä' .*position 0"),
    (['--start=FILE:nowhere.txt'], 'nowhere.txt'), (['--out_dir=nowhere'], 'no such checkpoint'),
])
def test_what_cannot_be_sampled_is_one_line(trained, argv, message):
    with pytest.raises(UserError, match=message) as error:
        trained(*argv)
    assert '\n' not in str(error.value)


def test_a_checkpoint_without_a_tokenizer_is_refused(trained, home):
    state = torch.load('run/best.pt', weights_only=True)
    torch.save(state | {'tokenizer': None}, 'run/best.pt')
    with pytest.raises(UserError, match='has no tokenizer'):
        trained()


@pytest.mark.parametrize('stop', ['b', 'ab', 'aab', 'é', 'xyz'])
@pytest.mark.parametrize('text', ['', 'aab', 'aaaab', 'ééaabx', 'xyxyz', 'aa'])
def test_the_text_ends_before_the_stop_and_no_part_of_it_is_shown(text, stop):
    tokenizer = Tokenizer({'kind': 'byte'})
    continuation, shown = sample.Continuation(tokenizer, [], stop), ''
    for token in tokenizer.encode(text).tolist():
        continuation.add(token)
        shown += continuation.take()
        assert text.split(stop)[0].startswith(shown)
        if continuation.ended:
            break
    assert shown + continuation.rest() == text.split(stop)[0]
    assert continuation.ended


def test_a_sample_ends_with_the_end_token_of_its_tokenizer():
    tokenizer = Tokenizer({'kind': 'byte'})
    tokenizer.special = {'<|endoftext|>': ord('c')}
    continuation = sample.Continuation(tokenizer, [], 'ax')
    for token in b'aba':
        continuation.add(token)
    assert (continuation.take(), continuation.ended) == ('ab', False)
    continuation.add(ord('c'))
    assert continuation.ended and continuation.rest() == 'a'


def test_a_sample_is_the_same_however_many_there_are(trained):
    argv = ['--start=fox', '--max_new_tokens=60', '--repetition_penalty=1.2']
    alone = trained(*argv).removesuffix('\n')
    batch = trained(*argv, '--num_samples=4').split('\n---\n')
    assert batch[0] == alone and len(set(batch[:4])) == 4 and batch[4] == ''


def test_samples_of_a_batch_stop_by_themselves(trained):
    argv = ['--start=fox', '--num_samples=5', '--temperature=2', '--max_new_tokens=40']
    whole, stopped = (trained(*argv, *stop).split('\n---\n')[:-1] for stop in ([], ['--stop= ']))
    assert sorted(stopped) == sorted(text.partition(' ')[0] for text in whole)


def test_without_a_stop_each_character_is_shown_as_it_comes():
    tokenizer = Tokenizer({'kind': 'byte'})
    continuation = sample.Continuation(tokenizer, [], None)
    parts = []
    for token in tokenizer.encode('aé').tolist():
        continuation.add(token)
        parts.append(continuation.take())
    assert parts == ['a', '', 'é']
