"""Text out of a checkpoint: streamed, in batches, stopped, and refused."""

import ast
import io
import os
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ENVIRONMENT, TINY

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


def test_a_sample_is_the_same_however_many_there_are(trained):
    argv = ['--start=fox', '--max_new_tokens=60', '--repetition_penalty=1.2']
    alone = trained(*argv).removesuffix('\n')
    batch = trained(*argv, '--num_samples=4').split('\n---\n')
    assert batch[0] == alone and len(set(batch[:4])) == 4 and batch[4] == ''


def test_samples_of_a_batch_stop_by_themselves(trained):
    argv = ['--start=fox', '--num_samples=5', '--temperature=2', '--max_new_tokens=40']
    whole, stopped = (trained(*argv, *stop).split('\n---\n')[:-1] for stop in ([], ['--stop= ']))
    assert sorted(stopped) == sorted(text.partition(' ')[0] for text in whole)


def test_a_stop_text_that_never_comes_changes_nothing(trained):
    argv = ['--start=fox', '--max_new_tokens=80']
    whole = trained(*argv)
    assert trained(*argv, '--stop=dogs that are quick') == whole
    assert trained(*argv, f'--stop={whole[3:]}never') == whole


def test_a_text_goes_to_a_file_instead(home, trained):
    shown = trained('--start=fox', '--max_new_tokens=30')
    assert trained('--start=fox', '--max_new_tokens=30', '--out=text.txt') == ''
    assert (home / 'text.txt').read_text(encoding='utf-8') == shown
    with pytest.raises(OSError, match='nowhere'):
        trained('--out=nowhere/text.txt')


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'int8'])
def test_every_number_format_of_a_cpu_writes_a_text(trained, dtype):
    argv = ['--start=fox', '--max_new_tokens=40', '--temperature=0', f'--dtype={dtype}']
    alone = trained(*argv)
    assert len(alone) == 44 and alone.startswith('fox')
    assert trained(*argv, '--num_samples=2').count('\n---\n') == 2


def test_int8_on_a_device_without_it_is_one_line():
    options = sample.SampleConfig(dtype='int8')
    with pytest.raises(UserError, match='dtype=int8 works on a CPU only, not on mps'):
        sample.place(torch.nn.Linear(2, 2), options, torch.device('mps'))


# --- how likely tokens were ----------------------------------------------------------------------

class Terminal(io.StringIO):
    def isatty(self):
        return True


def on_a_terminal(monkeypatch, *argv):
    monkeypatch.setattr(sys, 'stdout', Terminal())
    sample.main(['run', '--device=cpu', '--start=fox', '--max_new_tokens=20', *argv])
    return sys.stdout.getvalue()


def test_on_a_terminal_the_colours_tell_how_likely_tokens_were(trained, monkeypatch):
    monkeypatch.delenv('NO_COLOR', raising=False)
    plain = on_a_terminal(monkeypatch)
    painted = on_a_terminal(monkeypatch, '--show=probs')
    assert '\033' not in plain and re.sub(r'\033\[[0-9;]*m', '', painted) == plain
    assert len(set(re.findall(r'\033\[38;5;(\d+)m', painted))) > 1
    monkeypatch.setenv('NO_COLOR', '1')
    assert '\033' not in on_a_terminal(monkeypatch, '--show=probs')


def test_elsewhere_a_list_tells_it_and_what_else_was_likely(trained):
    text = trained('--start=fox', '--max_new_tokens=20')
    _, *lines = trained('--start=fox', '--max_new_tokens=20', '--show=probs').splitlines()
    assert ''.join(ast.literal_eval(line.split(None, 1)[1]) for line in lines[:20]) == text[3:-1]
    _, *lines = trained('--start=fox', '--max_new_tokens=20', '--top=3',
                        '--temperature=0').splitlines()
    for line in lines[:20]:
        first, second, third, fourth = re.findall(r"([0-9.]+)% '", line)
        assert first == second and float(second) >= float(third) >= float(fourth)


# --- prompts, one after another ------------------------------------------------------------------

def test_prompts_are_asked_for_until_there_are_no_more(trained, capsys, monkeypatch):
    expected = [trained(f'--start={prompt}', f'--seed={seed}', '--max_new_tokens=9')
                for prompt, seed in (('lazy', 1), ('fox', 1), ('fox', 3), ('the', 4))]
    monkeypatch.setattr(sys, 'stdin', io.StringIO('fox\nÄ\nfox\nthe'))
    sample.main(['run', '--device=cpu', '--interactive', '--max_new_tokens=9', '--start=lazy',
                 '--seed=1'])
    out, err = capsys.readouterr()
    assert out == ''.join(expected) and expected[1] != expected[2]
    assert err.count("error: the vocabulary has no character 'Ä'") == 1


@pytest.fixture
def talk(checkout, home, trained):
    """Start sample.py --interactive with the run, its pipes open."""
    processes = []

    def start(*argv, **options):
        processes.append(subprocess.Popen(
            [sys.executable, checkout / 'sample.py', '--out_dir=run', '--device=cpu',
             '--dtype=float32', *argv], env=ENVIRONMENT, cwd=home, text=True,
            **dict.fromkeys(('stdin', 'stdout', 'stderr'), subprocess.PIPE) | options))
        return processes[-1]
    yield start
    for process in processes:
        process.kill()
        with process:  # which closes its pipes
            pass


def test_an_interrupt_ends_the_text_and_not_the_program(talk):
    process = talk('--interactive', '--max_new_tokens=1e7')
    for prompt in ('fox', 'lazy'):
        process.stdin.write(f'{prompt}\n')
        process.stdin.flush()
        while prompt not in process.stdout.readline():
            pass
        process.send_signal(signal.SIGINT)
    process.stdin.close()
    assert process.wait(60) == 0
    assert process.stderr.read() == 'Ctrl-C ends a text, Ctrl-D the program\n'


def test_a_reader_who_leaves_ends_the_text_without_a_word(talk):
    process = talk('--max_new_tokens=1e7', '--start=fox')
    assert process.stdout.read(5).startswith('fox')
    process.stdout.close()
    assert process.wait(60) == 141 and process.stderr.read() == ''


@pytest.mark.skipif(not hasattr(os, 'openpty'), reason='needs a pseudo-terminal')
def test_a_terminal_that_closes_ends_the_text(talk):
    ours, theirs = os.openpty()
    process = talk('--max_new_tokens=1e7', '--start=fox', stdin=theirs, stdout=theirs,
                   start_new_session=True)
    os.close(theirs)
    assert os.read(ours, 3) == b'fox'
    os.close(ours)
    assert process.wait(60) != 0 and 'Traceback' not in process.stderr.read()
