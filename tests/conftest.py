"""What several tests use: a folder of their own in place of the repository's data/ and out/."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

import folio.options
import prepare
from folio.journal import Journal

REPOSITORY = Path(__file__).resolve().parent.parent
TEXT = ''.join(f'{i}: the quick brown fox jumps over {i % 7} lazy dogs.\n' for i in range(300))
TINY = ['--dataset=tiny', '--n_layer=2', '--n_head=2', '--n_embd=16', '--block_size=16',
        '--batch_size=4', '--device=cpu', '--dtype=float32', '--compile=False',
        '--warmup_steps=2']
CACHE = tempfile.TemporaryDirectory()
os.environ['XDG_CACHE_HOME'] = CACHE.name  # in place of the user's
torch.set_num_threads(1)  # the models are tiny: more threads wait for each other
ENVIRONMENT = os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONDONTWRITEBYTECODE': '1'}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder that stands for the repository's, with a small corpus called tiny. Runs draw no
    curve in it, which takes longer than they do; those that are processes of their own do."""
    monkeypatch.setattr(folio.options, 'ROOT', tmp_path)
    monkeypatch.setattr(Journal, 'draw', lambda self: None)
    monkeypatch.delenv('DATA_MIRROR', raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'tiny.txt').write_text(TEXT, encoding='utf-8')
    prepare.main(['--input=tiny.txt', '--tokenizer=char', '--name=tiny'])
    return tmp_path


def without_made_files(folder, names):
    """What is not copied: prepared data and compiled files."""
    prepared = [name for name in names if Path(folder, name).is_dir()] if folder.endswith(
        'data') else []
    return prepared + ['__pycache__']


def copy_scripts(folder):
    """Put a copy of the scripts and the text tiny.txt into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in REPOSITORY.glob('*.py'):
        shutil.copy(path, folder)
    for name in ('folio', 'tools', 'config', 'data', 'docs'):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=without_made_files)
    (folder / 'tiny.txt').write_text(TEXT, encoding='utf-8')


@pytest.fixture(scope='session')
def checkout(tmp_path_factory):
    """A copy of the scripts, to be run as a user runs them."""
    folder = tmp_path_factory.mktemp('folio')
    copy_scripts(folder)
    return folder


@pytest.fixture(scope='session')
def prepared(checkout):
    """The copied scripts with the tiny corpus: a function that starts one of them."""
    started = []

    def start(script, *argv, **options):
        started.append(subprocess.Popen([sys.executable, script, *argv], cwd=checkout, text=True,
                                        env=ENVIRONMENT, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, **options))
        return started[-1]
    process = start('prepare.py', '--input=tiny.txt', '--tokenizer=char', '--name=tiny')
    assert process.wait() == 0, process.stderr.read()
    yield start
    for process in started:  # a test that failed may have left some behind
        for pid in children(process.pid) if process.poll() is None else []:
            os.kill(pid, signal.SIGKILL)
        process.kill()


def children(pid):
    """The ids of the processes that a process started."""
    lists = Path(f'/proc/{pid}/task').glob('*/children')
    return [int(child) for path in lists for child in path.read_text().split()]
