"""Text into token files, and what is wrong with a text."""

import functools
import http.server
import json
import os
import threading
import zlib
from hashlib import sha256

import numpy as np
import pytest
from conftest import REPOSITORY, TEXT
from hypothesis import given
from hypothesis import strategies as st

import prepare
from script import UserError
from tokenizer import Tokenizer, tiktoken_spec

DIGEST = sha256(TEXT.encode()).hexdigest()


def read(folder):
    """(meta, train's text, val's text) of a prepared folder."""
    meta = json.loads((folder / 'meta.json').read_text(encoding='utf-8'))
    tokenizer = Tokenizer(meta['tokenizer'])
    return meta, *(tokenizer.decode(np.fromfile(folder / f'{split}.bin', meta['dtype']).tolist())
                   for split in ('train', 'val'))


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


@pytest.mark.parametrize('tokenizer', ['char', 'byte'])
def test_the_splits_are_the_text_cut_at_the_fraction(home, tokenizer):
    text = 'Grüße, 世界!\r\n\n' * 100
    (home / 'book.txt').write_bytes(text.encode())
    prepare.main(['--input=book.txt', f'--tokenizer={tokenizer}', '--name=book',
                  '--val_fraction=0.3'])
    meta, train, val = read(home / 'data' / 'book')
    cut = int(len(text) * 0.7)
    assert (train, val) == (text[:cut], text[cut:]) and meta['characters'] == len(text)
    assert meta['recipe']['val_fraction'] == 0.3


def test_pieces_change_nothing(home, monkeypatch):
    text = ''.join(f'{zlib.crc32(str(i).encode())} straße 🙂\n' for i in range(500))
    (home / 'book.txt').write_text(text, encoding='utf-8')
    for size in (1, 7, 1000):
        monkeypatch.setattr(prepare, 'PIECE', size)
        prepare.main(['--input=book.txt', '--tokenizer=char', '--name=book'])
        assert ''.join(read(home / 'data' / 'book')[1:]) == text


@pytest.mark.skipif('TIKTOKEN_CACHE_DIR' not in os.environ, reason='needs TIKTOKEN_CACHE_DIR')
def test_gpt2_in_pieces_is_gpt2_of_the_whole(home, monkeypatch):
    text = "It's   the\n\n  end...  of  it -- 123 456!\n" * 50
    (home / 'book.txt').write_text(text)
    monkeypatch.setattr(prepare, 'PIECE', 64)
    prepare.main(['--input=book.txt', '--tokenizer=gpt2', '--name=book'])
    tokenizer, cut = Tokenizer(tiktoken_spec('gpt2')), int(len(text) * 0.9)
    for split, part in (('train', text[:cut]), ('val', text[cut:])):
        ids = np.fromfile(home / 'data' / 'book' / f'{split}.bin', '<u2')
        assert ids.tolist() == tokenizer.encode(part).tolist()


@given(st.lists(st.text(alphabet='ab .\n', max_size=8)))
def test_words_stay_whole(texts):
    pieces = list(prepare.at_words(('train', text) for text in texts))
    assert ''.join(text for split, text in pieces if split == 'train') == ''.join(texts)
    ends = [text for split, text in pieces if text][:-1]
    assert all(text[-1].isalpha() for text in ends)


def test_files_folders_and_globs_are_read_in_order(home):
    (home / 'texts' / 'deep').mkdir(parents=True)
    for name, text in (('b.txt', 'B'), ('a.txt', 'A'), ('deep/c.txt', 'C'), ('d.md', 'D')):
        (home / 'texts' / name).write_text(text * 9)
    for inputs, expected in (('texts', 'ABDC'), ('texts/*.txt', 'AB'), ('texts/**/*.txt', 'ABC'),
                             ('texts/d.md,texts/a.txt', 'DA')):
        prepare.main([f'--input={inputs}', '--tokenizer=byte', '--name=some'])
        assert ''.join(read(home / 'data' / 'some')[1:]) == ''.join(c * 9 for c in expected)


@pytest.mark.parametrize('argv, message', [
    (['--input=no.txt', '--name=x'], 'no.txt: no such file'),
    (['--input=binary', '--name=x'], 'binary is not UTF-8 text: byte 3'),
    (['--input=empty', '--name=x'], '0 characters are too few'),
    (['--input=tiny.txt', '--name=a/b'], 'a name has'),
    (['--input=tiny.txt'], 'name the data set'),
    (['--name=x'], 'either input or url'),
    (['--input=tiny.txt', '--url=http://x/y', '--name=x'], 'either input or url'),
    (['--input=tiny.txt', '--name=x', '--val_fraction=1.5'], 'val_fraction'),
    (['--input=tiny.txt', '--name=x', '--tokenizer=gpt5'], 'there are char, byte, gpt2'),
])
def test_what_is_wrong_is_one_line_and_touches_nothing(home, argv, message):
    (home / 'binary').write_bytes('né'.encode() + b'\xff\xfe')
    (home / 'empty').write_bytes(b'')
    before = contents(home / 'data')
    with pytest.raises(UserError, match=message) as error:
        prepare.main([argument.replace('--name=x', '--name=tiny') for argument in argv])
    assert '\n' not in str(error.value)
    assert before == contents(home / 'data')


def test_the_offset_of_a_broken_byte_is_right_across_pieces(home, monkeypatch):
    monkeypatch.setattr(prepare, 'PIECE', 4)
    for good in ('abcde', 'é' * 5, 'ab世世'):
        (home / 'binary').write_bytes(good.encode() + b'\xe4x')
        with pytest.raises(UserError, match=f'byte {len(good.encode())} is'):
            prepare.main(['--input=binary', '--name=x'])


def test_a_run_that_fails_while_writing_leaves_the_data_set(home, monkeypatch):
    before = read(home / 'data' / 'tiny')

    def full(ids):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(prepare.os, 'fsync', full)
    (home / 'tiny.txt').write_text('something else ' * 100)
    with pytest.raises(UserError, match='No space left'):
        prepare.main(['--input=tiny.txt', '--name=tiny'])
    assert read(home / 'data' / 'tiny') == before
    monkeypatch.undo()


@pytest.fixture
def server(tmp_path_factory):
    """A web server of this machine, with the text at /book.txt: its address and its folder."""
    folder = tmp_path_factory.mktemp('web')
    (folder / 'book.txt').write_text(TEXT)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    handler.log_message = lambda *arguments: None
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{web.server_port}', folder
        web.shutdown()


def recipe(home, url, **more):
    lines = [f'{name} = {value!r}' for name, value in {'url': url, **more}.items()]
    (home / 'data' / 'book.py').write_text('\n'.join(lines))
    return str(home / 'data' / 'book.py')


def test_a_recipe_is_downloaded_once_and_checked(home, server):
    url, folder = server
    prepare.main([recipe(home, f'{url}/book.txt', sha256=DIGEST)])
    assert ''.join(read(home / 'data' / 'book')[1:]) == TEXT
    (folder / 'book.txt').unlink()
    prepare.main([recipe(home, f'{url}/book.txt', sha256=DIGEST)])


def test_a_mirror_is_a_folder_or_a_url(home, server, monkeypatch):
    url, folder = server
    for mirror in (url, str(folder)):
        monkeypatch.setenv('DATA_MIRROR', mirror)
        for path in (home / 'data').glob('book/*'):
            path.unlink()
        prepare.main([recipe(home, 'http://127.0.0.1:9/other.txt', file='book.txt', sha256=DIGEST)])
        assert ''.join(read(home / 'data' / 'book')[1:]) == TEXT


def test_a_wrong_checksum_is_refused_wherever_the_file_came_from(home, server):
    url, folder = server
    path = recipe(home, f'{url}/book.txt', sha256='0' * 64)
    with pytest.raises(UserError, match=f'{DIGEST}, not 000'):
        prepare.main([path])
    assert not (home / 'data' / 'book' / 'book.txt').exists()
    (home / 'data' / 'book' / 'book.txt').write_text(TEXT)
    with pytest.raises(UserError, match=f'{DIGEST}, not 000'):
        prepare.main([path])


def test_without_a_network_the_line_names_the_url_the_place_and_the_way_out(home):
    with pytest.raises(UserError) as error:
        prepare.main([recipe(home, 'http://127.0.0.1:9/book.txt')])
    for part in ('http://127.0.0.1:9/book.txt', str(home / 'data' / 'book' / 'book.txt'), 'stdlib'):
        assert part in str(error.value)


@pytest.mark.parametrize('name', sorted(p.stem for p in (REPOSITORY / 'data').glob('*.py')))
def test_every_recipe_can_be_read(name):
    options = prepare.read_options([str(REPOSITORY / 'data' / f'{name}.py')])
    assert options.name == name


@pytest.mark.skipif('DATA_MIRROR' not in os.environ,
                    reason='needs DATA_MIRROR, a folder with tinyshakespeare.txt')
def test_tiny_shakespeare_is_the_known_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare.config, 'ROOT', tmp_path)
    prepare.main([str(REPOSITORY / 'data' / 'shakespeare_char.py')])
    meta, train, _ = read(tmp_path / 'data' / 'shakespeare_char')
    assert meta['vocab_size'] == 65 and meta['tokens'] == {'train': 1_003_854, 'val': 111_540}
    assert train.startswith('First Citizen:\nBefore we proceed')
