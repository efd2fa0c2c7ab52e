"""How a script starts, ends and shows progress."""

import os
import platform
import sys

import pytest

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
    monkeypatch.setattr(cli, 'is_watched', lambda: True)
    with progress_bar(total=3) as bar:
        bar.update(2)
        assert bar.n == 2
    assert 'pip install tqdm' in capsys.readouterr().out
