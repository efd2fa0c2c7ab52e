"""Checkpoints: whole or not at all, and never code."""

import os
import pickle
import shutil
from dataclasses import dataclass
from types import SimpleNamespace

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
    message = 'could not be saved .* what was there is untouched: PytorchStreamWriter'
    with pytest.raises(UserError, match=message):
        checkpoint.save({'step': 2}, path)
    assert torch.load(path, weights_only=True) == {'step': 1} and len(list(tmp_path.iterdir())) == 1


def test_a_cut_or_foreign_checkpoint_is_refused(home):
    train.main([*TINY, '--max_steps=1'])
    whole = (home / 'out/tiny/ckpt.pt').read_bytes()
    for content in (whole[:len(whole) // 2], b'', b'hello'):
        (home / 'some.pt').write_bytes(content)
        with pytest.raises(UserError, match='some.pt is damaged, or was not made by folio'):
            checkpoint.load('some.pt')
    for foreign in ({'weights': 1}, [1]):
        torch.save(foreign, 'some.pt')
        with pytest.raises(UserError, match='some.pt is damaged, or was not made by folio'):
            checkpoint.load('some.pt')


def test_a_checkpoint_with_code_is_not_run(home):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(home / 'evil'),)
    state = {'model': Evil(), 'config': {}, 'tokenizer': None}
    torch.save(state, home / 'zip.pt')
    (home / 'bare.pt').write_bytes(pickle.dumps(state, protocol=2))
    for name in ('zip.pt', 'bare.pt'):
        with pytest.raises(UserError, match=f'{name} (holds pickled code|is damaged)'):
            checkpoint.load(name)
    assert not (home / 'evil').exists()


def test_a_folder_gives_its_best_model_or_else_its_last(tmp_path):
    state = {'model': {}, 'config': {}, 'tokenizer': None}
    checkpoint.save(state | {'step': 2}, tmp_path / 'ckpt.pt')
    assert checkpoint.load(tmp_path)['step'] == 2
    checkpoint.save(state | {'step': 1}, tmp_path / 'best.pt')
    assert checkpoint.load(tmp_path)['step'] == 1
    assert checkpoint.load(tmp_path / 'ckpt.pt')['step'] == 2
    with pytest.raises(UserError, match='no such checkpoint'):
        checkpoint.load(tmp_path / 'nowhere')


def test_the_checkpoint_before_is_kept_and_taken_where_the_newest_is_broken(tmp_path, capsys):
    state = {'model': {}, 'config': {}, 'tokenizer': None}
    for step in (1, 2, 3):
        checkpoint.save(state | {'step': step}, tmp_path / 'ckpt.pt')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['ckpt.prev.pt', 'ckpt.pt']
    (tmp_path / 'ckpt.pt').write_bytes(b'half')
    assert checkpoint.load(tmp_path)['step'] == 2
    assert 'ckpt.prev.pt is taken in its place' in capsys.readouterr().out
    (tmp_path / 'ckpt.pt').unlink()  # as between the two renames of a save
    assert checkpoint.load(tmp_path)['step'] == 2 and capsys.readouterr().out == ''


def test_a_checkpoint_with_one_flipped_bit_is_not_whole(tmp_path, capsys):
    state = {'model': {'a': torch.zeros(1000)}, 'config': {}, 'tokenizer': None}
    for step in (1, 2):
        checkpoint.save(state | {'step': step}, tmp_path / 'ckpt.pt')
    whole = bytearray((tmp_path / 'ckpt.pt').read_bytes())
    whole[whole.index(bytes(2000)) + 1000] ^= 4
    (tmp_path / 'ckpt.pt').write_bytes(whole)
    assert checkpoint.load(tmp_path)['step'] == 1
    assert 'ckpt.pt is damaged' in capsys.readouterr().out


def test_what_is_written_in_the_background_is_what_there_was_when_it_was_saved(tmp_path):
    weight, writer = torch.zeros(3), checkpoint.Writer()
    state = {'model': {'a': weight, 'tied': weight}, 'moments': [{'of': weight[:2]}]}
    writer.save({tmp_path / 'ckpt.pt': state}, lambda: (tmp_path / 'after').touch())
    weight += 1
    writer.wait()
    saved = torch.load(tmp_path / 'ckpt.pt', weights_only=True)
    assert saved['model']['a'].tolist() == [0, 0, 0]
    assert saved['moments'][0]['of'].tolist() == [0, 0]
    assert saved['model']['a'].data_ptr() == saved['model']['tied'].data_ptr()
    assert (tmp_path / 'after').exists() and not writer.failed


def test_a_process_that_keeps_no_checkpoint_writes_none(tmp_path):
    writer = checkpoint.Writer(keeps=False)
    writer.save({tmp_path / 'ckpt.pt': {'a': torch.ones(2)}}, lambda: (tmp_path / 'after').touch())
    writer.wait()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_vanished_is_made_again_and_one_that_cannot_be_is_said(tmp_path, capsys):
    writer, path = checkpoint.Writer(), tmp_path / 'run' / 'ckpt.pt'

    def save():
        writer.save({path: {'step': 1}}, lambda: None)
        writer.wait()
        return writer.failed
    assert save() == set()
    shutil.rmtree(path.parent)
    assert save() == set() and path.exists() and capsys.readouterr().out == ''
    shutil.rmtree(path.parent)
    path.parent.touch()  # no folder can be made here
    assert save() == {path} and capsys.readouterr().out.startswith('error: ')
    path.parent.unlink()
    assert save() == set()  # the latest save of it is good


def test_a_damaged_checkpoint_is_one_line():
    with pytest.raises(UserError, match="a.pt is damaged, or was not made by folio: KeyError: 'x'"):
        with checkpoint.damaged('a.pt'):
            {}['x']


@pytest.mark.parametrize('system, mapped', [('posix', True), ('nt', False)])
def test_a_checkpoint_is_part_of_its_file_where_a_mapped_file_can_be_replaced(
        tmp_path, monkeypatch, system, mapped):
    state, maps = {'model': {'x': torch.ones(3)}, 'config': {}, 'tokenizer': None}, []
    checkpoint.save(state, tmp_path / 'ckpt.pt')
    load = torch.load
    monkeypatch.setattr(torch, 'load', lambda *_, mmap, **named: (
        maps.append(mmap), load(*_, mmap=mmap, **named))[1])
    monkeypatch.setattr(checkpoint, 'os', SimpleNamespace(name=system))
    assert checkpoint.load(tmp_path / 'ckpt.pt')['model']['x'].equal(torch.ones(3))
    assert maps == [mapped]


def test_the_versions_of_what_made_a_checkpoint_are_plain_text():
    versions = checkpoint.versions()
    assert type(versions['torch']) is str and versions['python'].startswith('3.')


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


def test_an_option_of_the_checkpoint_of_another_type_is_named_before_it_is_compared():
    with pytest.raises(UserError, match='the n_embd of the checkpoint must be a whole number'):
        inherit(train.TrainConfig(), {'n_embd': 16}, {'n_embd': torch.zeros(3)}, ['n_embd'],
                ['n_embd'])


def test_a_data_set_of_another_vocabulary_is_refused():
    chars = {'kind': 'char', 'chars': 'abc'}
    meta = {'tokenizer': chars, 'vocab_size': 3}
    check_vocabulary('tiny', meta, dict(chars), 3)
    check_vocabulary('tiny', meta, None, 4)
    check_vocabulary('tiny', meta | {'tokenizer': None}, {'kind': 'byte'}, 256)
    with pytest.raises(UserError, match='3 different characters, those of the checkpoint bytes'):
        check_vocabulary('tiny', meta, {'kind': 'byte'}, 256)
    with pytest.raises(UserError, match='vocab_size=2 is below the 3 of tiny'):
        check_vocabulary('tiny', meta, chars, 2)


def test_a_link_stays_and_what_it_leads_to_is_moved(tmp_path):
    (tmp_path / 'big').mkdir()
    (tmp_path / 'big/log.jsonl').touch()
    (tmp_path / 'run').symlink_to('big')
    move_old_run(tmp_path / 'run')
    assert (tmp_path / 'big.1/log.jsonl').exists() and (tmp_path / 'run').is_symlink()


def test_where_the_user_is_the_files_move_into_a_folder_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('log.jsonl', 'notes.txt'):
        (tmp_path / name).touch()
    move_old_run(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f'{tmp_path.name}.1', 'notes.txt'}
    assert (tmp_path / f'{tmp_path.name}.1' / 'log.jsonl').exists()


def test_of_a_folder_of_other_things_a_run_alone_is_moved(tmp_path):
    folder = tmp_path / 'data'
    (folder / 'shakespeare_char').mkdir(parents=True)
    for name in ('train.py', 'ckpt.pt'):
        (folder / name).touch()
    move_old_run(folder)
    assert {path.name for path in folder.iterdir()} == {'shakespeare_char', 'train.py'}
    assert [path.name for path in (tmp_path / 'data.1').iterdir()] == ['ckpt.pt']


def test_an_older_checkpoint_has_no_token_shift_and_a_newer_one_keeps_its_own(tmp_path):
    state = {'model': {}, 'config': {}, 'tokenizer': None}
    for config, expected in (({}, False), ({'token_shift': True}, True)):
        checkpoint.save(state | {'config': config}, tmp_path / 'ckpt.pt')
        assert checkpoint.load(tmp_path / 'ckpt.pt')['config']['token_shift'] is expected


def test_an_old_run_gets_the_first_free_number(tmp_path, capsys):
    for name in ('run', 'run.1'):
        (tmp_path / name).mkdir()
    move_old_run(tmp_path / 'run')  # has nothing of a run
    assert (tmp_path / 'run').exists()
    (tmp_path / 'run/log.jsonl').write_text('')
    move_old_run(tmp_path / 'run')
    assert (tmp_path / 'run.2/log.jsonl').exists() and 'run.2' in capsys.readouterr().out
