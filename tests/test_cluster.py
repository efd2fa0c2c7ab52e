"""What is handed to Slurm and SkyPilot: sound scripts, whose commands are ones that there are."""

import os
import re
import shlex
import subprocess

import pytest
from conftest import REPOSITORY

from folio.options import parse
from prepare import read_options
from train import TrainConfig

yaml = pytest.importorskip('yaml')
PAGE = (REPOSITORY / 'docs/cluster.md').read_text(encoding='utf-8')
SLURM = (REPOSITORY / 'docs/slurm.sh').read_text(encoding='utf-8')
SKY = (REPOSITORY / 'sky.yaml').read_text(encoding='utf-8')
TASK = yaml.safe_load(SKY)


def torchrun_of(script, tmp_path, *arguments, **variables):
    """The arguments that the script gives to torchrun, with the programs around it replaced."""
    for name, text in {'torchrun': 'printf "%s\\n" "$@"', 'srun': '"$@"',
                       'scontrol': 'printf "10.0.0.%s\\n" 7 8'}.items():
        (tmp_path / name).write_text(f'#!/bin/bash\n{text}\n')
        (tmp_path / name).chmod(0o755)
    result = subprocess.run(
        ['bash', '-c', script, 'script', *arguments], capture_output=True, text=True,
        cwd=tmp_path, env={'PATH': f'{tmp_path}{os.pathsep}{os.environ["PATH"]}', **variables})
    assert result.returncode == 0, result.stderr
    return result.stdout.split('\n')[:-1]


def options_of(words):
    """The options of train.py among torchrun's arguments."""
    return parse(TrainConfig, words[words.index('train.py') + 1:])[0]


def test_the_slurm_script_joins_the_nodes_and_passes_options_on(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    words = torchrun_of(SLURM, tmp_path, 'config/gpt2.py', '--max_steps=5', SLURM_JOB_ID='42',
                        SLURM_JOB_NODELIST='n[7-8]', SLURM_NNODES='2', SLURM_GPUS_ON_NODE='8')
    assert {'--nnodes=2', '--nproc_per_node=8', '--rdzv_endpoint=10.0.0.7:29500'} < set(words)
    options = options_of(words)
    assert options.dataset == 'openwebtext' and options.max_steps == 5 and options.resume


@pytest.mark.parametrize('rank', ['0', '1'])
def test_the_sky_task_joins_the_nodes_and_goes_on(tmp_path, monkeypatch, rank):
    monkeypatch.chdir(REPOSITORY)
    envs = TASK['envs'] | {'OPTIONS': '--max_steps=5 --n_layer=2'}
    words = torchrun_of(TASK['run'], tmp_path, SKYPILOT_NUM_NODES='2', SKYPILOT_NODE_RANK=rank,
                        SKYPILOT_NUM_GPUS_PER_NODE='4', SKYPILOT_NODE_IPS='10.0.0.7\n10.0.0.8',
                        **envs)
    assert {'--nnodes=2', '--nproc_per_node=4', f'--node_rank={rank}',
            '--master_addr=10.0.0.7'} < set(words)
    options = options_of(words)
    assert options.resume and options.n_layer == 2 and options.out_dir.endswith('shakespeare_char')
    assert subprocess.run(['bash', '-n', '-c', TASK['setup']]).returncode == 0
    assert read_options([f'data/{TASK["envs"]["DATASET"]}.py']).name == options.dataset


@pytest.mark.parametrize('text', [SKY, re.sub(r'(?ms)^file_mounts:.*?^$', '', SKY)])
def test_skypilot_reads_the_task_with_and_without_the_bucket(tmp_path, monkeypatch, text):
    monkeypatch.setenv('SKYPILOT_DISABLE_USAGE_COLLECTION', '1')
    monkeypatch.setenv('HOME', str(tmp_path))
    sky = pytest.importorskip('sky')
    (tmp_path / 'sky.yaml').write_text(text)
    task = sky.Task.from_yaml(str(tmp_path / 'sky.yaml'))
    assert set(task.storage_mounts or {}) == ({'/bucket'} if text == SKY else set())
    assert all(resources.use_spot for resources in task.resources)
    assert task.num_nodes == 1 and task.envs['CONFIG'] == 'shakespeare_char'


@pytest.mark.parametrize('line', [line for line in PAGE.splitlines() if 'train.py ' in line
                                  and line.startswith(('torchrun', 'ip netns exec'))])
def test_the_commands_of_the_page_have_options_that_exist(line, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    options_of(shlex.split(line.removesuffix(' &')))


def test_what_the_page_links_to_is_there():
    for target in re.findall(r'\]\(([^)#:]+)\)', PAGE):
        assert (REPOSITORY / 'docs' / target).exists(), target
