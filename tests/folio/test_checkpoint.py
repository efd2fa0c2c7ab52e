"""Checkpoints: whole or not at all, and never code."""

import os
import pickle
from dataclasses import dataclass

import pytest
import torch
from conftest import TINY

import train
from folio import checkpoint
from folio.checkpoint import check_vocabulary, inherit, move_old_run
from folio.cli import UserError


def test_a_save_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'ckpt.pt'
    checkpoint.save({'step': 1}, path)

    def full(state, file):
        file.write(b'half')
        raise RuntimeError('PytorchStreamWriter failed writing file data/1\nmore')
    monkeypatch.setattr(torch, 'save', full)
    with pytest.raises(UserError, match='could not be saved .*: PytorchStreamWriter.*untouched'):
        checkpoint.save({'step': 2}, path)
    assert torch.load(path, weights_only=True) == {'step': 1} and len(list(tmp_path.iterdir())) == 1


def test_a_cut_or_foreign_checkpoint_is_refused(home):
    train.main([*TINY, '--max_steps=1'])
    whole = (home / 'out/tiny/ckpt.pt').read_bytes()
    for content, message in ((whole[:len(whole) // 2], 'no whole checkpoint'), (b'', 'no whole'),
                             (b'hello', 'no whole')):
        (home / 'some.pt').write_bytes(content)
        with pytest.raises(UserError, match=message):
            checkpoint.load('some.pt')
    torch.save({'weights': 1}, 'some.pt')
    with pytest.raises(UserError, match='not a checkpoint of train.py'):
        checkpoint.load('some.pt')


def test_a_checkpoint_with_code_is_not_run(home):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(home / 'evil'),)
    state = {'model': Evil(), 'config': {}, 'tokenizer': None}
    (home / 'some.pt').write_bytes(pickle.dumps(state, protocol=2))
    with pytest.raises(UserError, match='pickled code, which is not run'):
        checkpoint.load('some.pt')
    assert not (home / 'evil').exists()


def test_a_folder_gives_its_best_model_or_else_its_last(tmp_path):
    state = {'model': {}, 'config': {}, 'tokenizer': None}
    checkpoint.save(state | {'step': 2}, tmp_path / 'ckpt.pt')
    assert checkpoint.load(tmp_path)['step'] == 2
    checkpoint.save(state | {'step': 1}, tmp_path / 'best.pt')
    assert checkpoint.load(tmp_path)['step'] == 1
    assert checkpoint.load(tmp_path / 'ckpt.pt')['step'] == 2
    assert checkpoint.last_good(tmp_path) == f'{tmp_path / "ckpt.pt"} (step 2)'
    with pytest.raises(UserError, match='no such checkpoint'):
        checkpoint.load(tmp_path / 'nowhere')


@dataclass
class Options:
    size: int = 1
    rate: float = 0.1
    steps: int = 5


def test_options_not_given_come_from_the_checkpoint_and_fixed_ones_may_not_differ():
    saved, names = {'size': 7, 'rate': 0.7, 'unknown': 3}, ['size', 'rate', 'steps']
    found = inherit(Options(rate=0.2), {'rate': 0.2}, saved, ['size'], names)
    assert found == Options(size=7, rate=0.2, steps=5)
    assert inherit(Options(), {'size': None}, saved, ['size'], ['size']).size == 7
    with pytest.raises(UserError, match=r'size=2 \(there it is 7\)'):
        inherit(Options(size=2), {'size': 2}, saved, ['size'], names)


def test_a_data_set_of_another_vocabulary_is_refused():
    chars = {'kind': 'char', 'chars': 'abc'}
    meta = {'tokenizer': chars, 'vocab_size': 3}
    check_vocabulary('tiny', meta, dict(chars), 3)
    check_vocabulary('tiny', meta, None, 4)
    check_vocabulary('tiny', meta | {'tokenizer': None}, {'kind': 'byte'}, 256)
    with pytest.raises(UserError, match='tiny are 3 characters, those of the checkpoint bytes'):
        check_vocabulary('tiny', meta, {'kind': 'byte'}, 256)
    with pytest.raises(UserError, match='vocab_size=2 is below the 3 of tiny'):
        check_vocabulary('tiny', meta, chars, 2)


def test_an_old_run_gets_the_first_free_number(tmp_path, capsys):
    for name in ('run', 'run.1'):
        (tmp_path / name).mkdir()
    move_old_run(tmp_path / 'run')  # has nothing of a run
    assert (tmp_path / 'run').exists()
    (tmp_path / 'run/log.jsonl').write_text('')
    move_old_run(tmp_path / 'run')
    assert (tmp_path / 'run.2/log.jsonl').exists() and 'run.2' in capsys.readouterr().out
