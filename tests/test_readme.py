"""The README's commands, as a newcomer would type them, made short."""

import gzip
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ENVIRONMENT, REPOSITORY, TEXT

import config
from convert import ConvertConfig
from evaluate import EvaluateConfig
from prepare import PrepareConfig
from sample import SampleConfig
from train import TrainConfig

README = (REPOSITORY / 'README.md').read_text(encoding='utf-8')
SCRIPTS = r'\b(train|sample|prepare|convert|evaluate)\.py'
COMMANDS = [line for block in re.findall(r'```sh\n(.*?)```', README, re.DOTALL)
            for line in block.splitlines() if re.search(SCRIPTS, line)]
SHORT = {'train.py': '--max_steps=3 --eval_tokens=999', 'sample.py': '--max_new_tokens=5',
         'prepare.py': '', 'convert.py': '', 'evaluate.py': '--eval_tokens=999'}


def script_of(command):
    return re.search(SCRIPTS, command)[0]


@pytest.mark.parametrize('command', COMMANDS)
def test_each_command_has_options_that_exist(command, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    words = shlex.split(command)
    arguments = words[words.index(script_of(command)) + 1:]
    kind = {'train.py': TrainConfig, 'sample.py': SampleConfig, 'prepare.py': PrepareConfig,
            'convert.py': ConvertConfig, 'evaluate.py': EvaluateConfig}
    if '--help' not in arguments:
        config.parse(kind[script_of(command)], arguments)


def test_the_commands_run_in_their_order(checkout):
    """All but those for several GPUs, and without DATA_MIRROR those that need Shakespeare."""
    (checkout / 'mybook.txt').write_text(TEXT)
    (checkout / 'prompt.txt').write_text('KING')
    (checkout / 'notes').mkdir()
    (checkout / 'notes' / 'a.txt').write_text(TEXT)
    with gzip.open(checkout / 'articles.jsonl.gz', 'wt') as file:
        file.write(json.dumps({'text': TEXT}) + '\n')
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    ran = 0
    for command in COMMANDS:
        if re.search('gpt2|finetune', command) or script_of(command) == 'convert.py' and not (
                importlib.util.find_spec('safetensors')):
            continue
        if 'shakespeare' in command and 'DATA_MIRROR' not in os.environ:
            continue
        result = subprocess.run(f'{command} {SHORT[script_of(command)]}', shell=True, cwd=checkout,
                                capture_output=True, text=True, env=ENVIRONMENT | {'PATH': path})
        assert result.returncode == 0, f'{command}\n{result.stdout}\n{result.stderr}'
        ran += 1
    assert ran >= 4


def test_the_table_of_files_has_their_lengths():
    rows = re.findall(r'^\| \[.+\]\(([\w./]+)\) \| (\d+) \|', README, re.MULTILINE)
    counts = {name: len((REPOSITORY / name).read_text(encoding='utf-8').splitlines())
              for name, _ in rows}
    assert {name: int(count) for name, count in rows} == counts
    assert {path.name for path in REPOSITORY.glob('*.py')} <= counts.keys()


def test_what_the_readme_links_to_is_there():
    for target in re.findall(r'\]\(([^)#:]+)\)', README):
        assert (REPOSITORY / target).exists(), target


def test_pyproject_lists_what_the_requirements_do():
    tomllib = pytest.importorskip('tomllib')
    project = tomllib.loads((REPOSITORY / 'pyproject.toml').read_text(encoding='utf-8'))['project']
    requirements = (REPOSITORY / 'requirements.txt').read_text(encoding='utf-8').split()
    assert project['dependencies'] == requirements
