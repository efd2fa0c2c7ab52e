"""Log, samples, curve and trackers."""

import gc
import io
import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY

import train
from folio import checkpoint, journal
from folio.machine import Machine

RECORDS = [{'step': step, 'tokens': 10 * step, 'train_loss': 3 - step} for step in (1, 2, 3)]


class Plain:
    """Options of a run that nothing tracks."""
    wandb_project = tracker = None


def test_a_log_is_cut_at_the_step_where_a_run_goes_on(tmp_path):
    first = journal.Journal(tmp_path, Plain, 0)
    first.log(RECORDS)
    for step in (2, 3):
        first.sample(step, f'    step {step}\r\n    x')
    with open(tmp_path / 'log.jsonl', 'a') as file:
        file.write('{"step": 3, "tok')
    assert journal.read_log(tmp_path) == RECORDS
    journal.Journal(tmp_path, Plain, 2)
    assert journal.read_log(tmp_path) == RECORDS[:2]
    assert (tmp_path / 'samples.txt').read_bytes() == b'step 2\n    step 2\r\n    x\n'


@pytest.mark.parametrize('cut', ['st', 'step 20', 'step 20\n    on'])
def test_a_sample_that_a_crash_cut_short_is_left_out(tmp_path, cut):
    journal.Journal(tmp_path, Plain, 0).sample(1, '    one')
    with open(tmp_path / 'samples.txt', 'a') as file:
        file.write(cut)
    journal.Journal(tmp_path, Plain, 1)
    assert (tmp_path / 'samples.txt').read_text() == 'step 1\n    one\n'


def test_a_tracker_gets_every_record_with_its_step(tmp_path):
    class Tracker:
        logged = []

        def log(self, record, step):
            self.logged.append((step, record))
    tracked = journal.Journal(tmp_path, Plain, 0)
    tracked.tracker = Tracker()
    tracked.track(RECORDS)
    assert [record | {'step': step} for step, record in Tracker.logged] == RECORDS


def test_the_curve_is_a_picture_of_both_losses(tmp_path, monkeypatch):
    axes, drawn = pytest.importorskip('matplotlib.axes').Axes, []
    plot = axes.plot
    monkeypatch.setattr(axes, 'plot', lambda self, x, y, **style: [
        drawn.append((x, y)), plot(self, x, y, **style)])
    kept = journal.Journal(tmp_path, Plain, 0)
    kept.log([RECORDS[0] | {'val_loss': 3}, RECORDS[1], RECORDS[2] | {'val_loss': 2}])
    kept.draw()
    assert drawn == [([10, 20, 30], [2, 1, 0]), ([10, 30], [3, 2])]
    assert (tmp_path / 'loss.png').read_bytes().startswith(b'\x89PNG')


def test_the_pictures_of_a_long_run_do_not_pile_up_in_memory(tmp_path):
    figure = pytest.importorskip('matplotlib.figure').Figure
    kept = journal.Journal(tmp_path, Plain, 0)
    kept.log(RECORDS)
    gc.collect()
    gc.disable()  # as it seems to be in a large process: the oldest objects are rarely looked at
    try:
        for _ in range(3):
            kept.draw()
        assert not any(type(item) is figure for item in gc.get_objects())
    finally:
        gc.enable()


def test_without_matplotlib_there_is_no_picture_and_no_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    journal.Journal(tmp_path, Plain, 0).draw()
    assert not (tmp_path / 'loss.png').exists()
    journal.tell_end(tmp_path, 3, 1.5, 'a signal')
    printed = capsys.readouterr().out
    assert 'pip install matplotlib' in printed and 'stopped by a signal after step 3' in printed


def test_the_commands_at_the_end_are_quoted_where_they_have_to_be(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    journal.tell_end(tmp_path / 'my run', 3, 1.5, 'a signal')
    commands = [line for line in capsys.readouterr().out.splitlines() if '.py' in line]
    assert commands[0].endswith(" '--out_dir=my run' --resume=True")
    assert commands[1].startswith('python ') and commands[1].endswith(" '--out_dir=my run'")


@pytest.mark.parametrize('file', ['log.jsonl', 'samples.txt'])
def test_what_cannot_be_written_is_said_once_and_comes_with_the_next(tmp_path, capsys, file):
    kept = journal.Journal(tmp_path / 'run', Plain, 0)
    shutil.rmtree(tmp_path / 'run')
    (tmp_path / 'run').touch()  # no folder can be made here
    for record in RECORDS[:2]:
        kept.log([record])
        kept.sample(record['step'], 'text')
    assert capsys.readouterr().out.count(f'{file} failed, training goes on') == 1
    (tmp_path / 'run').unlink()
    kept.log(RECORDS[2:])
    kept.sample(3, 'text')
    assert journal.read_log(tmp_path / 'run') == RECORDS
    assert (tmp_path / 'run/samples.txt').read_text().count('text') == 3


def test_what_a_full_disk_did_not_take_of_a_line_comes_with_the_next(tmp_path, monkeypatch, capsys):
    room = [30]

    class Full(io.FileIO):
        def write(self, data):
            if not room[0]:
                raise OSError(28, 'No space left on device')
            taken = super().write(data[:room[0]])
            room[0] -= taken
            return taken
    kept = journal.Journal(tmp_path, Plain, 0)
    with monkeypatch.context() as patch:
        patch.setattr(journal, 'open', lambda path, *rest, **more: Full(path, 'a'), raising=False)
        kept.log(RECORDS[:1])
    assert 'No space' in capsys.readouterr().out and journal.read_log(tmp_path) == []
    kept.log(RECORDS[1:])
    assert journal.read_log(tmp_path) == RECORDS


def test_a_process_that_keeps_nothing_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = journal.Journal(None, train.TrainConfig(tracker='wandb'), 0, 'number')
    kept.log(RECORDS)
    kept.sample(1, 'text')
    kept.track(RECORDS)
    assert (kept.tracked, list(tmp_path.iterdir())) == ('number', [])
    assert not any(kept.unwritten.values())


def test_a_tracker_or_a_picture_that_fails_is_said_once_and_nothing_else(
        tmp_path, monkeypatch, capsys):
    class Dead:
        calls = 0

        def log(self, record, step):
            Dead.calls += 1
            raise ConnectionError('Connection lost')
    kept = journal.Journal(tmp_path, Plain, 0)
    kept.module, kept.tracker = 'wandb', Dead()
    monkeypatch.setenv('MPLBACKEND', 'module://not_there')
    monkeypatch.setattr(journal, 'draw_curves', lambda *rest: 1 / 0)
    for record in RECORDS:
        kept.log([record])
        kept.track([record])
        kept.draw()
    printed = capsys.readouterr().out
    assert printed.count('wandb failed, training goes on: Connection lost') == 1
    assert Dead.calls == 1  # each may take its time to fail
    assert printed.count('loss.png failed, training goes on: division by zero') == 1
    assert journal.read_log(tmp_path) == RECORDS


def test_of_a_long_log_a_curve_reads_a_part_and_every_evaluation(tmp_path):
    with open(tmp_path / 'log.jsonl', 'w') as file:
        for step in range(1, 20001):
            more = {'val_loss': 1.0} if step % 4001 == 0 else {}
            file.write(json.dumps(RECORDS[0] | {'step': step, 'text': 'x' * 150} | more) + '\n')
    records = journal.read_log(tmp_path, 1000)
    assert 900 < len(records) < 1100
    assert [r['step'] for r in records if 'val_loss' in r] == [4001, 8002, 12003, 16004]


def test_an_evaluation_that_was_owed_joins_its_step(tmp_path):
    kept = journal.Journal(tmp_path, Plain, 0)
    kept.log(RECORDS)
    kept.log([{'step': 3, 'tokens': 30, 'val_loss': 2.5}])
    assert journal.read_log(tmp_path) == RECORDS[:2] + [RECORDS[2] | {'val_loss': 2.5}]


def test_steps_that_were_skipped_are_gaps_in_the_curve(tmp_path):
    kept = journal.Journal(tmp_path, Plain, 0)
    kept.log([RECORDS[0], RECORDS[1] | {'train_loss': None}, RECORDS[2]])
    kept.draw()
    assert (tmp_path / 'loss.png').exists() and not kept.failing


# --- trackers ------------------------------------------------------------------------------------

def test_a_resumed_run_goes_on_with_the_same_run_of_wandb(home, monkeypatch):
    wandb = pytest.importorskip('wandb')
    for name, value in (('MODE', 'offline'), ('SILENT', 'true')):
        monkeypatch.setenv(f'WANDB_{name}', value)
    train.main([*TINY, '--max_steps=2', '--out_dir=run', '--wandb_project=folio'])
    wandb.finish()
    number = torch.load('run/ckpt.pt', weights_only=True)['tracker']
    train.main(['--out_dir=run', '--resume=True', '--max_steps=4'])
    wandb.finish()
    wandb.teardown()  # its process has written all
    assert torch.load('run/ckpt.pt', weights_only=True)['tracker'] == number
    logs = list((home / 'wandb').glob('offline-run-*/*.wandb'))
    assert {log.parent.name.rpartition('-')[2] for log in logs} == {number}
    assert all(b'train_loss' in log.read_bytes() for log in logs)


def test_without_a_project_nothing_is_sent_and_without_wandb_a_run_goes_on(
        home, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'wandb', None)  # as if it were not installed
    train.main([*TINY, '--max_steps=1', '--out_dir=run'])
    assert checkpoint.load('run/ckpt.pt')['tracker'] is None
    assert 'wandb' not in capsys.readouterr().out
    assert train.main([*TINY, '--max_steps=1', '--out_dir=other', '--wandb_project=folio']) == 0
    assert 'training goes on: wandb_project: pip install wandb' in capsys.readouterr().out


STANDING_IN = """
import json
from types import SimpleNamespace
def init(project, name=None, config=None, resume='never'):
    def log(record, step):
        with open('tracked.jsonl', 'a') as file:
            print(json.dumps([project, name, resume, step, *record]), file=file)
    return SimpleNamespace(name=f'{name}-2', log=log)  # as if that name was taken
"""


def test_any_module_with_the_init_of_wandb_may_track_a_run(home, monkeypatch):
    (home / 'standing_in.py').write_text(STANDING_IN)
    monkeypatch.syspath_prepend(home)
    train.main([*TINY, '--max_steps=1', '--out_dir=run'])
    assert 'standing_in' not in sys.modules
    train.main([*TINY, '--max_steps=1', '--out_dir=a', '--tracker=standing_in'])
    train.main(['--resume=True', '--max_steps=2', '--out_dir=a', '--wandb_project=folio'])
    tracked = [json.loads(line) for line in open('tracked.jsonl')]
    assert [line[:4] for line in tracked] == [
        ['tiny', 'a', 'never', 1], ['folio', 'a-2', 'allow', 2]]
    assert all('val_loss' in line and 'step' not in line for line in tracked)
    assert checkpoint.load('a/ckpt.pt')['tracker'] == 'a-2-2'


def test_a_checkpoint_names_no_module_that_is_run(home, capsys):
    (home / 'out').mkdir()
    (home / 'out' / 'x.py').write_text('raise SystemExit("this was run")')
    assert train.main([*TINY, '--max_steps=1', '--out_dir=run', '--tracker=out.x']) == 0
    assert 'out.x failed, training goes on: that is no name of a module' in capsys.readouterr().out


def test_a_tracker_may_take_any_settings_and_give_its_runs_no_name(tmp_path, monkeypatch):
    seen = {}

    def init(**settings):
        seen.update(settings)
        return SimpleNamespace(log=None)
    monkeypatch.setitem(sys.modules, 'taking', SimpleNamespace(init=init))
    kept = journal.Journal(tmp_path / 'run', train.TrainConfig(tracker='taking'), 0)
    assert seen['project'] == 'stdlib' and seen['config']['tracker'] == 'taking'
    assert 'resume' not in seen and kept.tracked == 'run'


def test_a_run_goes_on_without_a_tracker_that_is_missing_or_is_none(home, capsys):
    for name, reason in (('not_there', 'tracker: pip install not_there'),
                         ('math', "module 'math' has no attribute 'init'")):
        assert train.main([*TINY, '--max_steps=1', f'--out_dir={name}', f'--tracker={name}']) == 0
        assert f'{name} failed, training goes on: {reason}' in capsys.readouterr().out


def test_a_run_that_goes_on_without_its_tracker_keeps_its_number(tmp_path, monkeypatch):
    def init(**settings):
        raise ConnectionError('no network')
    monkeypatch.setitem(sys.modules, 'wandb', SimpleNamespace(init=init))
    kept = journal.Journal(tmp_path, train.TrainConfig(wandb_project='folio'), 3, 'number')
    assert (kept.tracker, kept.tracked) == (None, 'number')


def test_a_vocabulary_too_large_for_the_text_is_said_unless_weights_come_with_it(capsys):
    machine = Machine()
    for init_from, tokens, said in ((None, 255, True), (None, 256, False), ('out/x', 9, False)):
        options = train.TrainConfig(vocab_size=64, init_from=init_from)
        journal.tell_start(options, machine, 1, tokens)
        assert ('a vocabulary of 64 is too large' in capsys.readouterr().out) == said
