"""Storms of kills that lose nothing, and long runs that leak nothing, in short; see storm.py."""

import pytest
import storm


@pytest.mark.slow
@pytest.mark.parametrize('name, kills', [('one', 2), ('saves', 2), ('two', 2), ('prepare', 8)])
def test_what_is_killed_and_goes_on_ends_as_if_it_had_not_been_disturbed(name, kills, tmp_path):
    assert storm.ride_out(name, tmp_path, kills).losses == []


@pytest.mark.slow
def test_a_long_run_takes_no_more_memory_files_and_threads_than_a_short_one(tmp_path):
    assert storm.leaks(tmp_path, 2000) == {}


@pytest.mark.parametrize('one, other', [
    ({'a': [1, 2]}, {'a': [1, 3]}), ({'a': 1}, {'b': 1}), ([1], [1, 2]),
    ({'model': storm.torch.zeros(2)}, {'model': storm.torch.tensor([0, 1e-45])})])
def test_the_storm_sees_the_smallest_difference(one, other):
    assert storm.equal(one, one) and not storm.equal(one, other)
