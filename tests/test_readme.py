"""The commands of the README and of docs/, as a newcomer would type them, made short."""

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

sys.path.insert(0, str(REPOSITORY / 'docs'))

from attention_maps import MapsConfig
from questions import QuestionConfig
from sampling_speed import SamplingBenchConfig
from text_speed import TextConfig

from folio.options import parse
from prepare import PrepareConfig
from sample import SampleConfig
from tools.bench import BenchConfig
from tools.convert import ConvertConfig
from tools.evaluate import EvaluateConfig
from train import TrainConfig

PAGES = [REPOSITORY / 'README.md', *sorted((REPOSITORY / 'docs').glob('*.md'))]
SCRIPTS = {  # the options of each, and what makes its runs short
    'train.py': (TrainConfig, '--max_steps=3 --eval_tokens=999'),
    'sample.py': (SampleConfig, '--max_new_tokens=5'),
    'prepare.py': (PrepareConfig, ''),
    'tools/evaluate.py': (EvaluateConfig, '--eval_tokens=999'),
    'tools/convert.py': (ConvertConfig, ''),
    'tools/bench.py': (BenchConfig, None),  # None: not run here
    'docs/attention_maps.py': (MapsConfig, ''),
    'docs/text_speed.py': (TextConfig, None),
    'docs/sampling_speed.py': (SamplingBenchConfig, None),
    'docs/questions.py': (QuestionConfig, '--seeds=1 --max_steps=2'),
}
SCRIPT = r'(?<![\w/.])(?:(?:tools|docs)/)?\w+\.py\b'
NOT_RUN = (r'gpt2|nanoGPT|qwen3|finetune|torchrun|llama\.cpp|'  # GPUs, networks, others' files
           r'^(uv|sbatch|for|ip|sky) ')


def commands(page):
    """The commands of a page's blocks of shell that run a script of ours, as written."""
    blocks = re.findall(r'```sh\n(.*?)```', page.read_text(encoding='utf-8'), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if script_of(line)]


def inline_commands(page):
    """The commands in the page's text that run a script, such as those of tables."""
    text = re.sub(r'```.*?```', '', page.read_text(encoding='utf-8'), flags=re.DOTALL)
    spans = [' '.join(span.split()) for span in re.findall(r'`((?:python|uv run) [^`]+)`', text)]
    return [span.replace('seed=SEED', 'seed=1') for span in spans if script_of(span)]


def script_of(command):
    """The first script of ours in the command, or None."""
    return next((name for name in re.findall(SCRIPT, command) if name in SCRIPTS), None)


@pytest.mark.parametrize('command', dict.fromkeys(
    command for page in PAGES for command in commands(page) + inline_commands(page)))
def test_each_command_has_options_that_exist(command, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    words = shlex.split(command.removesuffix(' &'))
    arguments = words[words.index(script_of(command)) + 1:]
    arguments = [argument.replace('NAME.py', 'stdlib.py') for argument in arguments]
    if '--help' not in arguments:
        cls = SCRIPTS[script_of(command)][0]
        parse(cls, arguments, bare='out_dir' if cls in (SampleConfig, EvaluateConfig) else None)


def test_no_page_names_a_script_that_is_not_there():
    for page in PAGES:
        for name in re.findall(r'(?:python|uv run) ((?:\w+/)*\w+\.py)\b',
                               page.read_text(encoding='utf-8')):
            foreign = name.startswith('llama.cpp')
            assert foreign or (REPOSITORY / name).exists(), f'{page.name}: {name}'


def run_all(page, folder):
    """Run the page's commands in their order, made short; returns how many."""
    ran = 0
    for command in commands(page):
        more = SCRIPTS[script_of(command)][1]
        needs_hub = 'convert.py' in command and not importlib.util.find_spec('safetensors')
        needs_text = 'shakespeare' in command or 'ladder' in command or 'questions' in command
        if (re.search(NOT_RUN, command) or more is None or needs_hub
                or needs_text and 'DATA_MIRROR' not in os.environ):
            continue
        run_command(f'{command.rpartition(" && ")[2]} {more}', folder)
        ran += 1
    return ran


def run_command(command, folder):
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    result = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True,
                            env=ENVIRONMENT | {'PATH': path})
    assert result.returncode == 0, f'{command}\n{result.stdout}\n{result.stderr}'


@pytest.fixture(scope='session')
def newcomer(checkout):
    """(a checkout in which the README's commands ran, how many did)."""
    (checkout / 'mybook.txt').write_text(TEXT)
    (checkout / 'prompt.txt').write_text('KING')
    (checkout / 'notes').mkdir()
    (checkout / 'notes' / 'a.txt').write_text(TEXT)
    with gzip.open(checkout / 'articles.jsonl.gz', 'wt') as file:
        file.write(json.dumps({'text': TEXT}) + '\n')
    return checkout, run_all(PAGES[0], checkout)


def test_the_commands_of_the_readme_run_in_their_order(newcomer):
    """All but those for several GPUs, and without DATA_MIRROR those that need Shakespeare."""
    assert newcomer[1] >= 4


@pytest.mark.slow
@pytest.mark.parametrize('page', PAGES[1:], ids=lambda page: page.stem)
def test_the_commands_of_each_page_run_after_those_of_the_readme(newcomer, page):
    run_all(page, newcomer[0])


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_what_a_page_links_to_is_there(page):
    for target in re.findall(r'\]\(([^)#:]+)\)', page.read_text(encoding='utf-8')):
        assert (page.parent / target).exists(), target


def test_the_readme_names_every_file_and_function_that_is_there():
    text = PAGES[0].read_text(encoding='utf-8')
    files = {str(path.relative_to(REPOSITORY)) for folder in ('', 'folio', 'tools')
             for path in (REPOSITORY / folder).glob('*.py') if path.stem != '__init__'}
    assert files == set(re.findall(r'^\| \[[\w./]+\]\(([\w./]+\.py)\) \|', text, re.MULTILINE))
    for names, file in re.findall(r'^\| [^|]+\? \| (.*?) in \[([\w./]+)\]', text, re.MULTILINE):
        for name in re.findall(r'`([\w.]+)`', names):
            source = (REPOSITORY / file).read_text(encoding='utf-8')
            assert re.search(rf'\b{name.split(".")[-1]}\b', source), f'{file}: {name}'
    assert len(text.splitlines()) <= 220


def test_each_page_of_the_docs_is_linked_from_the_readme():
    text = PAGES[0].read_text(encoding='utf-8')
    assert all(f'](docs/{page.name})' in text for page in PAGES[1:])


def test_pyproject_lists_what_the_requirements_do():
    tomllib = pytest.importorskip('tomllib')
    content = tomllib.loads((REPOSITORY / 'pyproject.toml').read_text(encoding='utf-8'))
    lines = (REPOSITORY / 'requirements.txt').read_text(encoding='utf-8').split('\n')[:-1]
    assert content['project']['dependencies'] == lines
    lines = (REPOSITORY / 'requirements-dev.txt').read_text(encoding='utf-8').split('\n')[:-1]
    assert ['-r requirements.txt', *content['dependency-groups']['dev']] == lines
