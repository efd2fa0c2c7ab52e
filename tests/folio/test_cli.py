"""How a script starts, ends and shows progress."""

import errno
import io
import os
import platform
import signal
import subprocess
import sys

import filelock
import pytest
from conftest import REPOSITORY

from folio import cli
from folio.cli import UserError, first_line, progress_bar, short


def ends_with(monkeypatch, error, rank='0'):
    """What a script exits with whose main raises the error."""
    def main(argv):
        raise error
    for name, value in (('RANK', rank), ('WORLD_SIZE', '2'), ('MASTER_ADDR', 'a'),
                        ('MASTER_PORT', '1')):
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    return stop.value.code


def test_what_a_user_can_mend_is_one_line(monkeypatch):
    assert ends_with(monkeypatch, UserError('wrong')) == 'error: wrong'
    assert ends_with(monkeypatch, UserError('wrong'), rank='1') == 1
    full = f'error: rank 1 ({platform.node()}): full'
    assert ends_with(monkeypatch, OSError('full'), rank='1') == full
    assert ends_with(monkeypatch, KeyboardInterrupt()) == 130
    alone = UserError('only here')
    alone.any_rank = True
    assert ends_with(monkeypatch, alone, rank='1').endswith('): only here')


def test_a_bug_keeps_its_traceback(monkeypatch):
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda argv: 1 / 0)


def test_a_path_is_shown_as_a_user_would_type_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert short(tmp_path / 'out' / 'a') == os.path.join('out', 'a')
    assert short('/elsewhere') == '/elsewhere'


def test_the_first_line_of_an_error_or_its_name():
    assert first_line(ValueError('a\nb')) == 'a' and first_line(ValueError()) == 'ValueError'


@pytest.mark.parametrize('tqdm', ['there', 'absent'])
def test_a_bar_that_nobody_watches_is_silent(monkeypatch, capsys, tqdm):
    if tqdm == 'absent':
        monkeypatch.setitem(sys.modules, 'tqdm', None)
    with progress_bar(total=3, desc='work', unit='x') as bar:
        bar.update()
        bar.set_description_str('more')
        bar.write('a line')
        assert bar.disable and bar.total == 3
    assert capsys.readouterr() == ('a line\n', '')


def test_a_watched_bar_that_cannot_be_is_said(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'tqdm', None)
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
    with progress_bar(total=3) as bar:
        bar.update(2)
    assert 'pip install tqdm' in capsys.readouterr().out


# --- locks, and a lost reader --------------------------------------------------------------------

def test_a_folder_that_is_locked_is_refused_with_the_name_of_who_holds_it(tmp_path):
    script = 'import sys, time, pathlib; from folio.cli import locked\n' \
             'with locked(pathlib.Path(sys.argv[1])): print(1, flush=True); time.sleep(60)'
    holder = subprocess.Popen([sys.executable, '-c', script, tmp_path / 'run'], cwd=REPOSITORY,
                              stdout=subprocess.PIPE)
    holder.stdout.readline()
    with pytest.raises(UserError, match=f'in use by process {holder.pid} on {platform.node()}'):
        with cli.locked(tmp_path / 'run'):
            pass
    holder.kill()
    holder.wait()
    with cli.locked(tmp_path / 'run'), cli.locked(tmp_path / 'other'):
        pass  # one that died is no obstacle


def test_where_there_are_no_locks_that_is_said(tmp_path, monkeypatch, capsys):
    def acquire(self, timeout):
        raise OSError(37, 'No locks available')
    monkeypatch.setattr(filelock.FileLock, 'acquire', acquire)
    with cli.locked(tmp_path / 'run'):
        assert "can't be locked" in capsys.readouterr().out


@pytest.mark.parametrize('number, heard', [(errno.EPIPE, 1), (errno.EIO, 1), (errno.ENOSPC, 0)])
def test_a_stream_outlives_its_reader_and_a_full_disk(tmp_path, number, heard):
    class Broken(io.StringIO):
        def write(self, text):
            raise OSError(number, 'broken')

        def fileno(self):
            return file.fileno()
    signals = []
    before = signal.signal(signal.SIGHUP, lambda *rest: signals.append(rest))
    try:
        with open(tmp_path / 'out', 'w') as file:
            cli.LastingStream(Broken()).write('text')
    finally:
        signal.signal(signal.SIGHUP, before)
    assert len(signals) == heard


def test_streams_that_are_closed_from_the_start_are_empty_and_take_everything(monkeypatch):
    def main(argv):
        assert sys.stdin.read() == ''
        with cli.lasting_output(), progress_bar(total=3) as bar:
            print('text')
            bar.update()
            return 5 if bar.disable else 0
    for name in ('stdin', 'stdout', 'stderr'):
        monkeypatch.setattr(sys, name, None)
    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    assert stop.value.code == 5
