"""The machine: what is chosen, what the processes agree on, and signals."""

import dataclasses
import os
import signal

import pytest
import torch

from folio import machine
from folio.cli import UserError
from train import TrainConfig

CPU = machine.Machine(torch.device('cpu'))


def test_a_compiler_that_fails_is_named_or_with_auto_passed_over(monkeypatch, capsys):
    def broken(function):
        raise RuntimeError('no C++ compiler')
    monkeypatch.setattr(torch, 'compile', broken)
    with pytest.raises(UserError, match='no C\\+\\+ compiler'):
        machine.choose_compile(True, CPU, 0, required=True)
    assert machine.choose_compile(True, CPU, 0, required=False) is False
    assert 'no C++ compiler' in capsys.readouterr().out
    assert machine.choose_compile('auto', CPU, 150, required=True) is False
    assert 'no C++ compiler' in capsys.readouterr().out


@pytest.mark.parametrize('device, dtype, seconds, pays', [
    ('cpu', 'float32', 150, True), ('cpu', 'float32', 60, False), ('cpu', 'float32', 0, False),
    ('cpu', 'bfloat16', 1800, False),
    ('cuda', 'bfloat16', 0, True), ('mps', 'float32', 1800, False)])
def test_auto_compiles_on_cuda_and_in_a_long_run_on_a_cpu(device, dtype, seconds, pays):
    asked = machine.Machine(torch.device(device), getattr(torch, dtype))
    assert machine.pays_to_compile(asked, seconds) == pays


def test_the_compiler_keeps_its_work_in_the_cache_folder_or_where_the_user_says(
        tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    for name, expected in ((None, str(tmp_path / 'folio/compiled')), ('mine', 'mine')):
        monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', name or '')
        if name is None:
            monkeypatch.delenv('TORCHINDUCTOR_CACHE_DIR')
        machine.keep_compiled()
        assert os.environ['TORCHINDUCTOR_CACHE_DIR'] == expected
    monkeypatch.delenv('TORCHINDUCTOR_CACHE_DIR')
    monkeypatch.setenv('XDG_CACHE_HOME', '/proc/nowhere')
    machine.keep_compiled()
    assert 'TORCHINDUCTOR_CACHE_DIR' not in os.environ


def test_ranks_that_stand_at_different_steps_are_an_error(home, monkeypatch):
    theirs = {'step': 7, 'rate': 0.1, 'host': 'far'}
    monkeypatch.setattr(machine.Machine, 'gather', lambda self, facts: [facts, theirs])
    CPU.check_same({'step': 7, 'rate': 0.1})
    message = r'and rank 1 \(far\) differ: step=5 and 7; rate=0.2 and 0.1$'
    with pytest.raises(UserError, match=message):
        CPU.check_same({'step': 5, 'rate': 0.2})


@pytest.mark.parametrize('name', ['SIGINT', 'SIGUSR1', 'SIGHUP'])
def test_a_hang_up_is_ignored_only_where_it_was(name):
    number = getattr(signal, name)
    before = {each: signal.getsignal(each) for each in (number, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever started the tests
    signal.signal(number, signal.SIG_IGN)
    try:
        with machine.catch_signals() as signals:
            signal.raise_signal(signal.SIGHUP)
            assert signals.stop == (0 if name == 'SIGHUP' else signal.SIGHUP)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_sums_and_maxima_of_one_process_are_its_own():
    assert CPU.sum(torch.tensor([1.0, 2.0])).tolist() == [1, 2]
    assert CPU.maximum(3.0, -1.0) == [3, -1]


def test_a_maximum_is_that_of_all_processes(monkeypatch):
    def other_rank(values, operation):
        assert operation == machine.dist.ReduceOp.MAX
        values.copy_(torch.maximum(values, torch.tensor([2.0, 7.0], dtype=values.dtype)))
    monkeypatch.setattr(machine.dist, 'all_reduce', other_rank)
    assert dataclasses.replace(CPU, world=2).maximum(3.0, 1.0) == [3, 7]


def test_the_work_of_rank_0_is_done_there_and_its_failure_ends_all(monkeypatch):
    assert CPU.on_rank_0(max, 3, 5) == 5
    other = dataclasses.replace(CPU, rank=1, world=2)
    monkeypatch.setattr(machine.Machine, 'gather', lambda self, error: [None, error])
    assert other.on_rank_0(max, 3, 5) is None
    monkeypatch.setattr(machine.Machine, 'gather', lambda self, error: ['no room', error])
    with pytest.raises(SystemExit):
        other.on_rank_0(max, 3, 5)
    with pytest.raises(UserError, match='/nowhere/at/all'):
        CPU.on_rank_0(open, '/nowhere/at/all')


@pytest.mark.parametrize('errors, alone', [(['same'] * 2, False), ([None, 'same'], True),
                                           (['other', 'same'], True)])
def test_an_error_is_printed_by_rank_0_or_by_the_one_that_has_it_alone(monkeypatch, errors, alone):
    def fail():
        raise OSError('same')
    monkeypatch.setattr(machine.Machine, 'gather', lambda self, error: errors)
    with pytest.raises(UserError, match='same') as caught:
        dataclasses.replace(CPU, rank=1, world=2).together(fail)
    assert caught.value.any_rank == alone


def test_rank_0_asks_the_cpu_for_all_and_a_typed_format_is_obeyed(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(machine, 'fastest_format', lambda *question: asked.append(question))
    monkeypatch.setattr(machine.Machine, 'gather', lambda self, value: ['float32', value])
    other = dataclasses.replace(CPU, rank=1)
    monkeypatch.setattr(machine.Machine, 'together', lambda self, work, *rest: work(*rest))
    for dtype, given, chosen in (('auto', (), 'float32'), ('bfloat16', ('dtype',), 'bfloat16')):
        options = TrainConfig(device='cpu', dtype=dtype)
        other.choose(options, given, 64, 32)
        assert (other.dtype, other.compiled) == (getattr(torch, chosen), False) and not asked
    assert 'this CPU is not faster with bfloat16' in capsys.readouterr().out


def test_a_format_that_does_not_work_is_an_error_only_if_it_was_typed(capsys):
    assert machine.choose_dtype('float16', CPU.device, 'bfloat16', False) == torch.bfloat16
    assert 'float16 does not work on a CPU; bfloat16 is taken' in capsys.readouterr().out
    with pytest.raises(UserError, match='dtype=float16 does not work'):
        machine.choose_dtype('float16', CPU.device, 'bfloat16', True)


def test_autocast_is_on_for_formats_of_two_bytes_alone():
    for dtype in (torch.float32, torch.bfloat16):
        with dataclasses.replace(CPU, dtype=dtype).autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_the_first_signal_is_kept_and_a_second_interrupt_ends_at_once():
    before = signal.getsignal(signal.SIGTERM)
    with machine.catch_signals() as signals:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        assert signals == machine.Signals(signal.SIGTERM, True)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_first_interrupt_is_a_signal_to_stop():
    with machine.catch_signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
    assert signals.stop == signal.SIGINT


def test_a_hangup_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with machine.catch_signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
        assert signals.stop == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_errors_that_are_not_about_memory_pass_through():
    with pytest.raises(RuntimeError, match='shapes'), machine.out_of_memory(CPU):
        raise RuntimeError('shapes differ')


def test_help_that_nobody_reads_on_is_no_error():
    def show():
        raise BrokenPipeError
    with pytest.raises(BrokenPipeError):
        CPU.together(show)
