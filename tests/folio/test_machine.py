"""The machine: what is chosen, what the processes agree on, and signals."""

import dataclasses
import os
import signal

import pytest
import torch

from folio import machine
from folio.cli import UserError

CPU = machine.Machine(torch.device('cpu'))


def test_a_compiler_that_fails_is_named_or_with_auto_passed_over(monkeypatch, capsys):
    def broken(function):
        raise RuntimeError('no C++ compiler')
    monkeypatch.setattr(torch, 'compile', broken)
    with pytest.raises(UserError, match='no C\\+\\+ compiler'):
        machine.choose_compile(True, torch.device('cpu'))
    monkeypatch.setattr(torch, 'zeros', lambda *shape, device: None)
    assert machine.choose_compile('auto', torch.device('cuda')) is False
    assert 'no C++ compiler' in capsys.readouterr().out


def test_ranks_that_stand_at_different_steps_are_an_error(home, monkeypatch):
    def other_rank(values, *rest):  # is at step 7
        values.copy_(torch.maximum(values, torch.tensor([7, -7], dtype=values.dtype)))
    monkeypatch.setattr(machine.dist, 'all_reduce', other_rank)
    two = dataclasses.replace(CPU, world=2)
    two.check_same_on_ranks(7, 'step')
    with pytest.raises(UserError, match='from 5 to 7 as the step'):
        two.check_same_on_ranks(5, 'step')


def test_sums_and_maxima_of_one_process_are_its_own():
    assert CPU.sum(torch.tensor([1.0, 2.0])).tolist() == [1, 2]
    assert CPU.maximum(3.0, -1.0) == [3, -1]


def test_the_work_of_rank_0_is_done_there_and_its_failure_ends_all(monkeypatch):
    monkeypatch.setattr(machine.dist, 'all_reduce', lambda tensor, *rest: tensor)
    assert CPU.on_rank_0(max, 3, 5) == 5
    other = dataclasses.replace(CPU, rank=1, world=2)
    assert other.on_rank_0(max, 3, 5) is None
    monkeypatch.setattr(machine.dist, 'all_reduce', lambda tensor, *rest: tensor.fill_(1))
    with pytest.raises(UserError, match='rank 0 failed'):
        other.on_rank_0(max, 3, 5)
    with pytest.raises(FileNotFoundError):
        CPU.on_rank_0(open, '/nowhere/at/all')


def test_autocast_is_on_for_formats_of_two_bytes_alone():
    for dtype in (torch.float32, torch.bfloat16):
        with dataclasses.replace(CPU, dtype=dtype).autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_the_first_signal_is_kept_and_the_second_interrupts():
    before = signal.getsignal(signal.SIGTERM)
    with machine.stop_signals() as received:
        os.kill(os.getpid(), signal.SIGTERM)
        assert received == [signal.SIGTERM]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before


def test_errors_that_are_not_about_memory_pass_through():
    with pytest.raises(RuntimeError, match='shapes'), machine.out_of_memory(CPU):
        raise RuntimeError('shapes differ')
