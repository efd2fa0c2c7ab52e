"""The corpus on disk and the order of its windows."""

import json

import numpy as np
import pytest
from conftest import TEXT
from hypothesis import given
from hypothesis import strategies as st

from corpus import Tokens, open_corpus, permute, window_starts
from script import UserError


@given(st.integers(1, 500), st.integers(0, 2**64 - 1))
def test_a_permutation_takes_each_index_to_its_own_place(n, key):
    places = permute(np.arange(n), n, np.full(n, key, np.uint64))
    assert sorted(places.tolist()) == list(range(n))


@given(st.integers(1, 200), st.integers(1, 20), st.integers(0, 19), st.integers(0, 1000))
def test_every_window_comes_once_an_epoch(n, block_size, extra, seed):
    n_tokens = (n + 1) * block_size + extra % block_size
    for epoch in range(3):
        starts = window_starts(np.arange(epoch * n, (epoch + 1) * n), n_tokens, block_size, seed)
        assert len(set(starts % block_size)) == 1
        assert sorted((starts // block_size).tolist()) == list(range(n))
        assert starts.min() >= 0 and starts.max() + block_size < n_tokens


def test_epochs_and_seeds_have_orders_of_their_own():
    def order(seed, epoch):
        return window_starts(np.arange(epoch * 100, epoch * 100 + 100), 101 * 8, 8, seed).tolist()
    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(map(tuple, orders))) == 4


def test_neighbours_in_the_order_are_no_neighbours_in_the_text():
    places = window_starts(np.arange(10_000), 10_001 * 4, 4, seed=3) // 4
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(places, np.arange(10_000))[0, 1]) < 0.05


@pytest.fixture
def tokens(tmp_path):
    path = tmp_path / 'some.bin'
    (np.arange(1000) % 50).astype('<u2').tofile(path)
    return Tokens([path], '<u2', 50)


def test_windows_are_the_tokens_at_their_starts(tokens):
    windows = tokens.windows(np.array([0, 49, 990]), 5)
    assert windows.tolist() == [[0, 1, 2, 3, 4], [49, 0, 1, 2, 3], [40, 41, 42, 43, 44]]


def test_a_token_beyond_the_vocabulary_is_named_with_its_place(tokens):
    tokens.vocab_size = 44
    with pytest.raises(UserError, match='token 994 of the split is 44, beyond') as error:
        tokens.windows(np.array([0, 990]), 5)
    assert error.value.any_rank


def test_a_bin_file_of_odd_length_is_refused(tmp_path):
    (tmp_path / 'odd.bin').write_bytes(b'abc')
    with pytest.raises(UserError, match='3 bytes'):
        Tokens([tmp_path / 'odd.bin'], '<u2', 50)


def shard(path, ids):
    """A token file as llm.c writes it."""
    head = np.zeros(256, '<i4')
    head[:3] = 20240520, 1, len(ids)
    path.write_bytes(head.tobytes() + np.asarray(ids, '<u2').tobytes())


def test_shards_with_and_without_a_header_are_read_as_one(tmp_path):
    shard(tmp_path / 'a.bin', range(10))
    np.arange(10, 13, dtype='<u2').tofile(tmp_path / 'b.bin')
    shard(tmp_path / 'c.bin', [])
    shard(tmp_path / 'd.bin', range(13, 20))
    tokens = Tokens(sorted(tmp_path.iterdir()), '<u2', 50)
    assert len(tokens) == 20
    for start in range(20):
        for length in range(1, 21 - start):
            assert tokens.read(start, length).tolist() == list(range(start, start + length))


def test_a_shard_that_is_shorter_than_its_header_says_is_refused(tmp_path):
    shard(tmp_path / 'a.bin', range(10))
    (tmp_path / 'a.bin').write_bytes((tmp_path / 'a.bin').read_bytes()[:-2])
    with pytest.raises(UserError, match='a.bin is half made.* 10 tokens'):
        Tokens([tmp_path / 'a.bin'], '<u2', 50)


def test_the_shards_of_a_folder_are_one_corpus(home):
    folder = home / 'data' / 'foreign'
    folder.mkdir()
    for i in (1, 2):
        shard(folder / f'fineweb_train_{i:06}.bin', np.full(100, i))
    shard(folder / 'fineweb_val_000000.bin', range(50))
    train, val, meta = open_corpus('foreign')
    assert (len(train), len(val), meta['vocab_size']) == (200, 50, 50257)
    assert train.read(99, 2).tolist() == [1, 2]


def test_a_half_made_data_set_is_refused(home):
    path = home / 'data' / 'tiny' / 'val.bin'
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match='val.bin is half made.*run prepare'):
        open_corpus('tiny')


def test_an_absent_data_set_names_the_recipes_and_the_way_to_make_one(home):
    (home / 'data' / 'known.py').write_text('')
    with pytest.raises(UserError, match='recipes: known;.*prepare.py --input=FILE --name=other'):
        open_corpus('other')


def test_a_missing_data_set_is_prepared_by_its_recipe_but_not_under_torchrun(home, monkeypatch):
    (home / 'data' / 'other.py').write_text("input = 'tiny.txt'\ntokenizer = 'byte'\n")
    monkeypatch.setenv('RANK', '0')
    with pytest.raises(UserError, match='first run python prepare.py'):
        open_corpus('other')
    monkeypatch.delenv('RANK')
    train, val, meta = open_corpus('other')
    assert len(train) + len(val) == len(TEXT) and meta['vocab_size'] == 256


def test_a_recipe_that_changed_is_a_warning(home, capsys):
    recipe = home / 'data' / 'other.py'
    recipe.write_text("input = 'tiny.txt'\ntokenizer = 'byte'\n")
    open_corpus('other')
    open_corpus('other')
    assert 'warning' not in capsys.readouterr().out
    recipe.write_text("input = 'tiny.txt'\ntokenizer = 'char'\n")
    open_corpus('other')
    assert 'other options than' in capsys.readouterr().out


def test_files_without_meta_are_taken_as_gpt2(home, capsys):
    folder = home / 'data' / 'foreign'
    folder.mkdir()
    for name in ('train.bin', 'val.bin'):
        np.arange(200, dtype='<u2').tofile(folder / name)
    assert open_corpus('foreign')[2]['vocab_size'] == 50257
    assert "taken as GPT-2's" in capsys.readouterr().out
    (folder / 'meta.pkl').write_bytes(b'')
    with pytest.raises(UserError, match='meta.pkl'):
        open_corpus('foreign')


def test_a_vocabulary_above_65536_takes_four_bytes(home):
    folder = home / 'data' / 'tiny'
    meta = json.loads((folder / 'meta.json').read_text())
    for split, count in meta['tokens'].items():
        np.full(count, 70_000, '<u4').tofile(folder / f'{split}.bin')
    (folder / 'meta.json').write_text(json.dumps(meta | {'dtype': 'uint32', 'vocab_size': 70_001}))
    assert open_corpus('tiny')[0].windows([0], 3).tolist() == [[70_000] * 3]
