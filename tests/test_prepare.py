"""Text into token files, and what is wrong with a text."""

import bz2
import functools
import gzip
import http.server
import io
import json
import lzma
import os
import threading
import zlib
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, TEXT
from hypothesis import given
from hypothesis import strategies as st

import prepare
import texts
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
        monkeypatch.setattr(texts, 'PIECE', size)
        prepare.main(['--input=book.txt', '--tokenizer=char', '--name=book'])
        assert ''.join(read(home / 'data' / 'book')[1:]) == text


@pytest.mark.skipif('TIKTOKEN_CACHE_DIR' not in os.environ, reason='needs TIKTOKEN_CACHE_DIR')
def test_gpt2_in_pieces_is_gpt2_of_the_whole(home, monkeypatch):
    text = "It's   the\n\n  end...  of  it -- 123 456!\n" * 50
    (home / 'book.txt').write_text(text)
    monkeypatch.setattr(texts, 'PIECE', 64)
    prepare.main(['--input=book.txt', '--tokenizer=gpt2', '--name=book'])
    tokenizer, cut = Tokenizer(tiktoken_spec('gpt2')), int(len(text) * 0.9)
    for split, part in (('train', text[:cut]), ('val', text[cut:])):
        ids = np.fromfile(home / 'data' / 'book' / f'{split}.bin', '<u2')
        assert ids.tolist() == tokenizer.encode(part).tolist()


@given(st.lists(st.tuples(st.booleans(), st.text(alphabet='ab .\n', max_size=8))))
def test_pieces_of_a_document_end_before_a_space_after_something_else(pieces):
    pieces = [('train', i == 0 or begins, text) for i, (begins, text) in enumerate(pieces) if text]
    documents = []
    for _, begins, text in pieces:
        documents = [*documents, text] if begins or not documents else [
            *documents[:-1], documents[-1] + text]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, 'PIECE', 4)
        cut = list(texts.at_words(pieces))
    assert ''.join(text for _, _, text in cut) == ''.join(documents)
    for (_, _, text), (_, begins, after) in zip(cut, cut[1:], strict=False):
        assert begins or len(text) > 64 or (after[0] == ' ' and not text[-1].isspace())


def test_the_same_bytes_come_out_for_any_number_of_workers(home, monkeypatch):
    monkeypatch.setattr(texts, 'PIECE', 64)
    (home / 'texts').mkdir()
    for i in range(120):
        (home / 'texts' / f'{i:03}.txt').write_text(f'{i} straße ' * (i % 9 + 1))
    made = []
    for workers in (1, 2, 5):
        prepare.main(['--input=texts', '--name=some', f'--workers={workers}', '--val_fraction=0.3'])
        made.append([(home / 'data' / 'some' / f'{split}.bin').read_bytes()
                     for split in ('train', 'val')])
    assert made[0] == made[1] == made[2]


WRITERS = {'': open, '.gz': gzip.open, '.bz2': bz2.open, '.xz': lzma.open}


@pytest.mark.parametrize('packed', WRITERS)
def test_many_documents_go_whole_to_one_split_that_their_text_decides(home, packed):
    stories = [f'story {i % 150} of {zlib.crc32(str(i % 150).encode())}\n' for i in range(200)]
    splits = []
    for order in (stories, stories[::-1]):
        with WRITERS[packed](home / f'x.jsonl{packed}', 'wb') as file:
            file.writelines(json.dumps({'story': text}).encode() + b'\n' for text in order)
        prepare.main([f'--input=x.jsonl{packed}', '--tokenizer=byte', '--name=some',
                      '--field=story'])
        meta, *parts = read(home / 'data' / 'some')
        assert meta['documents'] == 200 and meta['characters'] == len(''.join(stories))
        splits.append([sorted(part.splitlines(keepends=True)) for part in parts])
    assert splits[0] == splits[1] and sorted(splits[0][0] + splits[0][1]) == sorted(stories)
    assert not set(splits[0][0]) & set(splits[0][1]) and 10 < len(splits[0][1]) < 40


def test_parquet_and_zstandard_are_read_where_their_libraries_are(home):
    pyarrow, parquet, zstandard = (pytest.importorskip(name) for name in (
        'pyarrow', 'pyarrow.parquet', 'zstandard'))
    stories = [f'ab {i}\n' for i in range(150)]
    table = pyarrow.table({'text': [*stories, None]})
    parquet.write_table(table, home / 'a.parquet')
    (home / 'b.txt.zst').write_bytes(zstandard.compress(b'the last one\n'))
    (home / 'c.parquet.gz').write_bytes(gzip.compress((home / 'a.parquet').read_bytes()))
    for name, count in (('a.parquet', 150), ('a.parquet,b.txt.zst', 151), ('c.parquet.gz', 150)):
        prepare.main([f'--input={name}', '--tokenizer=byte', '--name=some'])
        meta, train, val = read(home / 'data' / 'some')
        assert meta['documents'] == count and set(stories) <= set((train + val).splitlines(True))
    with pytest.raises(UserError, match='a.parquet: no column is called story .* text'):
        prepare.main(['--input=a.parquet', '--field=story', '--name=x'])


def test_copies_of_a_document_are_never_in_both_splits(home, capsys):
    for name, text in (('a.txt', 'one\n'), ('b.txt', 'two\n'), ('c.txt', 'one\n')):
        (home / name).write_text(text * 5)
    prepare.main(['--input=a.txt,b.txt,c.txt', '--tokenizer=byte', '--name=some'])
    assert ''.join(read(home / 'data' / 'some')[1:]) == 'one\n' * 5 + 'two\n' * 5
    assert 'exact copies of others, left out: 1' in capsys.readouterr().out


def test_standard_input_is_a_document(home, monkeypatch):
    monkeypatch.setattr(prepare.sys, 'stdin', io.TextIOWrapper(io.BytesIO(b'from a pipe ' * 9)))
    prepare.main(['--input=-', '--tokenizer=byte', '--name=some'])
    assert ''.join(read(home / 'data' / 'some')[1:]) == 'from a pipe ' * 9
    assert sorted(path.name for path in (home / 'data' / 'some').iterdir()) == [
        'meta.json', 'train.bin', 'val.bin']


def test_a_learned_vocabulary_brings_the_text_back_with_separators_between_documents(home, capsys):
    pytest.importorskip('tokenizers')
    for i in range(3):
        (home / f'{i}.txt').write_text(f'document {i}: straße 🙂 <|endoftext|> \n' * 20)
    prepare.main(['--input=*.txt', '--tokenizer=bpe:300', '--name=some', '--val_fraction=0.2'])
    assert capsys.readouterr().out.count('\n') == 4
    meta, train, val = read(home / 'data' / 'some')
    assert meta['vocab_size'] <= 300 and meta['tokenizer']['name'] == 'bpe:300'
    start = Tokenizer(meta['tokenizer']).start
    ids = np.fromfile(home / 'data' / 'some' / 'train.bin', '<u2').tolist()
    files = sorted(home.glob('*.txt'))
    assert ids.count(start) == len(files) - 1 and start not in (ids[0], ids[-1])
    whole = '<|endoftext|>'.join(path.read_text() for path in files)
    assert train + val == whole


def test_rare_characters_become_one_unknown_and_their_share_is_said(home, capsys):
    (home / 'x.txt').write_text('aaaa bbbb ' * 50 + 'ü世')
    prepare.main(['--input=x.txt', '--name=some', '--max_vocab=4'])
    meta, train, val = read(home / 'data' / 'some')
    assert meta['tokenizer']['chars'] == ' ab\ufffd' and val.endswith('b \ufffd\ufffd')
    assert '2 characters (0.398%)' in capsys.readouterr().out
    assert Tokenizer(meta['tokenizer']).encode('axb🙂').tolist() == [1, 3, 2, 3]
    (home / 'y.txt').write_text('ab ' * 9)
    prepare.main(['--input=x.txt,y.txt', '--name=some', '--max_vocab=4'])
    assert '\ufffd\n' in ''.join(read(home / 'data' / 'some')[1:])  # the line between the two


def test_files_folders_and_globs_are_read_in_order(home):
    (home / 'texts' / 'deep').mkdir(parents=True)
    (home / 'texts' / '.hidden').write_text('H')
    for name, text in (('b.txt', 'B'), ('a.txt', 'A'), ('deep/c.txt', 'C'), ('d.md', 'D')):
        (home / 'texts' / name).write_text(text * 9)
    for inputs, expected in (
            ('texts', 'ABDC'), ('texts/*.txt', 'AB'), ('texts/**/*.txt', 'ABC'),
            ('texts/d.md,texts/a.txt', 'DA')):
        prepare.main([f'--input={inputs}', '--tokenizer=byte', '--name=some'])
        text = ''.join(read(home / 'data' / 'some')[1:])
        assert text == '\n'.join(c * 9 for c in expected)


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
    (['--input=tiny.txt', '--name=x', '--tokenizer=bpe:9'], '257'),
    (['--input=tiny.txt', '--name=x', '--max_vocab=1'], 'max_vocab must be at least 2'),
    (['--input=field.jsonl', '--name=x'], 'field.jsonl, line 2: no text is called text .* story'),
    (['--input=broken.jsonl', '--name=x'], 'broken.jsonl, line 1: '),
    (['--input=cut.txt.gz', '--name=x'], 'cut.txt.gz cannot be read'),
    (['--input=cut.txt.xz', '--name=x'], 'cut.txt.xz cannot be read'),
    (['--input=secret', '--name=x'], 'secret cannot be read: Permission denied'),
])
def test_what_is_wrong_is_one_line_and_touches_nothing(home, argv, message):
    (home / 'binary').write_bytes('né'.encode() + b'\xff\xfe')
    (home / 'empty').write_bytes(b'')
    (home / 'field.jsonl').write_text('{"text": "a"}\n{"story": "b"}\n')
    (home / 'broken.jsonl').write_text('{"text": \n')
    (home / 'cut.txt.gz').write_bytes(gzip.compress(os.urandom(999))[:500])
    (home / 'cut.txt.xz').write_bytes(b'no xz at all')
    (home / 'secret').write_text('x')
    (home / 'secret').chmod(0)
    if argv[0] == '--input=secret' and os.access(home / 'secret', os.R_OK):
        pytest.skip('root can read every file')
    before = contents(home / 'data')
    with pytest.raises(UserError, match=message) as error:
        prepare.main([argument.replace('--name=x', '--name=tiny') for argument in argv])
    assert '\n' not in str(error.value)
    assert before == contents(home / 'data')


def test_the_offset_of_a_broken_byte_is_right_across_pieces(home, monkeypatch):
    monkeypatch.setattr(texts, 'PIECE', 4)
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


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves files; the rest of one where asked for; it breaks off after `enough` bytes."""
    enough, asked = None, []

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        Server.asked.append(self.headers['Range'])
        body = Path(self.translate_path(self.path)).read_bytes()
        start = int((self.headers['Range'] or 'bytes=0-')[6:-1])
        if start >= len(body):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header('Content-Length', str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start:][:Server.enough])


@pytest.fixture
def server(tmp_path_factory):
    """A web server of this machine, with the text at /book.txt: its address and its folder."""
    folder = tmp_path_factory.mktemp('web')
    (folder / 'book.txt').write_text(TEXT)
    handler = functools.partial(Server, directory=str(folder))
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


def test_a_download_goes_on_where_it_broke_off(home, server, monkeypatch, capsys):
    url, folder = server
    monkeypatch.setattr(Server, 'enough', 4000)
    monkeypatch.setattr(Server, 'asked', [])
    prepare.main([recipe(home, f'{url}/book.txt', sha256=DIGEST)])
    assert Server.asked == [None, *(f'bytes={n}-' for n in range(4000, len(TEXT), 4000))]
    assert '1 file, 0.0 MB, to be fetched' in capsys.readouterr().out


@pytest.mark.parametrize('part', [TEXT, TEXT + 'more'])
def test_a_download_that_was_whole_or_too_long_is_fetched_anew(home, server, part):
    url, _ = server
    (home / 'data' / 'book').mkdir()
    (home / 'data' / 'book' / 'book.txt.part').write_text(part)
    prepare.main([recipe(home, f'{url}/book.txt', sha256=DIGEST)])
    assert ''.join(read(home / 'data' / 'book')[1:]) == TEXT


def test_several_urls_or_the_first_of_them_are_documents(home, server):
    url, folder = server
    (folder / 'second.txt').write_text('the second\n' * 9)
    second = sha256((folder / 'second.txt').read_bytes()).hexdigest()
    path = recipe(home, [f'{url}/book.txt', f'{url}/second.txt'], sha256=[DIGEST, second])
    prepare.main([path, '--tokenizer=byte'])
    assert ''.join(read(home / 'data' / 'book')[1:]) == TEXT + 'the second\n' * 9
    prepare.main([path, '--max_files=1'])
    assert ''.join(read(home / 'data' / 'book')[1:]) == TEXT


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
