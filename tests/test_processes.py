"""Several processes do what one does, and survive each other's deaths, failures and signals."""

import os
import shutil
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import storm
import torch
from conftest import ENVIRONMENT, TINY, children
from ranks import PATIENCE, Ranks, run_together
from storm import CLOCK, differences

import train
from folio import checkpoint
from folio.journal import read_log

pytestmark = pytest.mark.slow
# At the usual rates training is chaotic: within 100 steps it makes 1e-3 of a rounding error.
OPTIONS = [*TINY, '--batch_size=8', '--micro_batch_size=1', '--max_steps=40',
           '--eval_interval=10', '--log_interval=5', '--learning_rate=1e-3', '--muon_lr=3e-3']
AGREEING = ('step', 'tokens', 'lr')


def torchrun(processes, *more):
    """The start of a command for so many processes on one node."""
    return ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}', *more]


def finish(*processes):
    """What the processes print, [(stdout, stderr)], which have to end well."""
    with ThreadPoolExecutor() as pool:  # none waits for its output to be read
        outputs = list(pool.map(lambda process: process.communicate(timeout=PATIENCE), processes))
    for process, (_, err) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, err
    return outputs


def wait_for(text, process):
    """Read what a process prints until the text comes; returns the line."""
    for line in process.stdout:
        if text in line:
            return line
    pytest.fail(process.communicate()[1])


def assert_same_losses(one, other):
    """The logs of two folders are the same up to rounding."""
    for a, b in zip(read_log(one), read_log(other), strict=True):
        assert [a[name] for name in AGREEING] == [b[name] for name in AGREEING]
        for name in ('train_loss', 'val_loss', 'bits_per_byte'):
            assert a.get(name, 0) == pytest.approx(b.get(name, 0), rel=1e-5), a['step']


@pytest.fixture(scope='module')
def whole(prepared, checkout):
    """A function that gives the folder of an undisturbed run of so many processes."""
    def run(processes):
        folder = checkout / f'whole{processes}'
        if not folder.exists():
            run_together(checkout, processes, *OPTIONS, '--resume=True', f'--out_dir={folder}')
        return folder
    return run


@pytest.mark.parametrize('processes', [2, 4])
def test_more_processes_have_the_losses_of_one(whole, processes):
    assert_same_losses(whole(1), whole(processes))


@pytest.mark.parametrize('processes', [1, 4])
def test_what_two_processes_saved_goes_on_with_another_number(checkout, whole, processes):
    folder = checkout / f'on{processes}'
    shutil.copytree(whole(2), folder, ignore=shutil.ignore_patterns('ckpt.pt'))
    assert checkpoint.load(folder / 'ckpt.prev.pt')['step'] == 30
    run_together(checkout, processes, *OPTIONS, f'--out_dir={folder}', '--resume=True')
    assert_same_losses(whole(1), folder)


# --- a model that no process has whole ------------------------------------------------------------

def test_processes_that_share_a_model_have_the_losses_and_the_checkpoint_of_one(
        checkout, whole):
    folder = checkout / 'shared'
    run_together(checkout, 2, *OPTIONS, '--shard=True', f'--out_dir={folder}')
    assert_same_losses(whole(1), folder)
    for name in ('ckpt.pt', 'best.pt'):
        one, other = (shapes_of(storm.state_of(run / name)) for run in (whole(1), folder))
        assert one == other


def shapes_of(value):
    """The same dicts and lists, with the shapes and formats of their tensors."""
    if isinstance(value, dict):
        return {key: shapes_of(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shapes_of(item) for item in value]
    return (value.shape, value.dtype) if isinstance(value, torch.Tensor) else type(value)


def only_save(argv):
    """train.py, but what it loads is saved again at once."""
    train.training_loop = lambda run: train.save_run(run, True)
    train.main(argv)


@pytest.mark.parametrize('ours, theirs', [(1, 4), (2, 1)])
def test_what_is_saved_goes_on_bit_for_bit_with_any_number_that_share(
        checkout, whole, ours, theirs):
    source, folder = whole(ours), checkout / f'from{ours}to{theirs}'
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns('ckpt.pt'))
    run_together(checkout, theirs, '--resume=True', '--shard=True', '--max_steps=300',
                   '--batch_size=8', f'--out_dir={folder}', main=only_save)
    saved, loaded = (checkpoint.read(path) for path in (folder / 'ckpt.pt',
                                                        source / 'ckpt.prev.pt'))
    assert storm.equal(saved['model'], loaded['model'])
    for one, other in zip(saved['optimizers'], loaded['optimizers'], strict=True):
        assert storm.equal(one['state'], other['state'])


@pytest.mark.parametrize('processes, more', [
    (2, ['--optimizer=adamw', '--tied=False', '--position=learned', '--bias=True']),
    (4, ['--mlp=swiglu', '--n_kv_head=1', '--recompute=True', '--norm_weight=True'])], ids=str)
def test_processes_that_share_any_kind_of_model_have_its_losses(
        prepared, checkout, processes, more):  # of 4 some have no row of a matrix of 2
    options = [*OPTIONS, *more, '--max_steps=12', '--eval_interval=5']
    one, all_ = (checkout / f'{name}{processes}' for name in ('kind', 'kind_of_all'))
    run_together(checkout, 1, *options, f'--out_dir={one}')
    run_together(checkout, processes, *options, '--shard=True', f'--out_dir={all_}')
    assert_same_losses(one, all_)


def test_processes_that_share_a_model_end_together_where_it_diverges(prepared, checkout):
    codes, outputs = Ranks(checkout, 2, *OPTIONS, '--shard=True', '--muon_lr=1e12',
                           '--learning_rate=1e12', '--out_dir=diverging').wait()
    assert codes == [1, 1], outputs
    assert ''.join(outputs).count('not finite in 10 steps in a row') == 1, outputs


LATE = """
import os, time, train
if (os.environ['RANK'], os.environ['TORCHELASTIC_RESTART_COUNT']) == ('0', '1'):
    time.sleep(3)  # time for the other to find addresses of the first start
train.cli.run(train.main)
"""


def test_torchrun_brings_back_a_job_whose_rank_was_killed(prepared, checkout, whole):
    (checkout / 'late.py').write_text(LATE)
    process = prepared(*torchrun(2, '--max-restarts=3'), 'late.py', *OPTIONS, '--resume=True',
                       '--out_dir=back')
    until((checkout / 'back' / 'ckpt.pt').exists, process)
    children_of(process, signal.SIGKILL, 0)
    [(out, err)] = finish(process)
    assert 'going on from step ' in out and err.count('Sending process') == 1, err
    assert differences(whole(2), checkout / 'back') == []


def test_two_nodes_bring_back_a_job_whose_rank_was_killed(prepared, checkout, whole, monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, 'TORCH_DISABLE_SHARE_RDZV_TCP_STORE', '1')
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    agents = [prepared('-m', 'torch.distributed.run', '--nnodes=2', '--nproc_per_node=1',
                       '--rdzv_backend=c10d', f'--rdzv_endpoint=localhost:{port}', '--rdzv_id=job',
                       '--max-restarts=3', 'train.py', *OPTIONS, '--resume=True',
                       '--out_dir=nodes') for _ in range(2)]
    until((checkout / 'nodes' / 'ckpt.pt').exists, agents[0])
    children_of(agents[1], signal.SIGKILL)
    outputs = finish(*agents)
    assert 'going on from step ' in ''.join(out for out, _ in outputs)
    assert differences(whole(2), checkout / 'nodes') == []


def children_of(process, number, *ranks):
    """Send a signal to the children of a process, or to those of these ranks."""
    pids = children(process.pid)
    for pid in [pids[rank] for rank in ranks] or pids:
        os.kill(pid, number)


def until(condition, process):
    """Wait until a condition holds, while a process runs."""
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


FAILING = """
import os, sys, train
def failing(*arguments, step=train.train_step):
    if arguments[-1].step == 20 and os.environ['RANK'] == sys.argv[1]:
        raise ValueError('this one is broken')
    return step(*arguments)
train.train_step = failing
train.cli.run(lambda argv: train.main(argv[1:]))
"""


@pytest.mark.parametrize('rank', [0, 1])
def test_a_rank_that_fails_ends_the_others_and_its_error_comes_first(prepared, checkout, rank):
    (checkout / 'failing.py').write_text(FAILING)
    process = prepared(*torchrun(2), 'failing.py', str(rank), *OPTIONS, f'--out_dir=failed{rank}')
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0 and err.count('ValueError: this one is broken') == 1, err
    first = err.index('ValueError: this one is broken')
    assert all(err.find(text) in (-1, *range(first, len(err)))
               for text in ('another process ended', 'ChildFailedError', 'error: '))


def test_a_signal_to_one_rank_saves_and_training_goes_on(prepared, checkout):
    argv = [*TINY, '--max_steps=1e6', '--log_interval=1', '--eval_interval=1e6', '--out_dir=asked']
    process = prepared(*torchrun(2), 'train.py', *argv)
    wait_for('step 5 ', process)
    children_of(process, signal.SIGUSR1, 1)
    path = checkout / 'asked' / 'ckpt.pt'
    until(path.exists, process)
    saved = checkpoint.read(path)['step']
    wait_for(f'step {saved + 50} ', process)
    process.terminate()
    out, err = process.communicate(timeout=PATIENCE)
    assert 'stopped by a signal' in out, err
    assert checkpoint.read(path)['step'] > saved + 50


def evaluate_slowly(argv):
    """train.py, which says that it evaluates, one window after another."""
    def short(*arguments, batches=train.validation_batches):
        return [(starts[i:i + 1], length) for starts, length in batches(*arguments)
                for i in range(len(starts))]

    def evaluating(model, tokens, *rest, validate=train.validate):
        print('evaluating', flush=True)
        read = tokens.windows
        tokens.windows = lambda *window: (time.sleep(0.02), read(*window))[1]
        try:
            return validate(model, tokens, *rest)
        finally:
            del tokens.windows
    train.validation_batches, train.validate = short, evaluating
    train.main(argv)


def test_an_evaluation_that_a_signal_ends_is_made_later(prepared, checkout):
    argv = [*TINY, '--max_steps=30', '--eval_interval=10', '--resume=True', '--shard=True']
    ranks = Ranks(checkout, 2, *argv, '--out_dir=owing', main=evaluate_slowly)
    while ranks.outputs[0].read_text().count('evaluating') < 2:
        assert ranks.processes[0].is_alive(), ranks.wait()
        time.sleep(0.01)
    for process in ranks.processes:
        process.terminate()
    ranks.wait()
    state = checkpoint.read(checkout / 'owing' / 'ckpt.pt')
    assert (state['step'], state['evaluated']) == (20, 10)
    for name in ('owing', 'patient'):
        run_together(checkout, 2, *argv, f'--out_dir={name}', main=evaluate_slowly)
    one, other = ([record | CLOCK for record in read_log(checkout / name)]
                  for name in ('owing', 'patient'))
    assert one == other
    assert [record['step'] for record in one if 'val_loss' in record] == [10, 20, 30]
    assert differences(checkout / 'patient', checkout / 'owing') in ([], ['log.jsonl'])


def test_all_processes_take_the_format_that_rank_0_finds_fast(prepared, checkout):
    options = [option for option in TINY if not option.startswith('--dtype')]
    run_together(checkout, 2, *options, '--max_steps=2', '--out_dir=format')
    dtype = checkpoint.load(checkout / 'format')['config']['dtype']
    assert dtype in ('float32', 'bfloat16')  # the processes compare what they train with
