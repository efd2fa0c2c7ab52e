"""Documents out of files."""

import bz2
import gzip
import itertools
import json
import lzma
import os

import pytest
import regex  # which tiktoken needs
from hypothesis import given
from hypothesis import strategies as st

from folio import texts
from folio.cli import UserError
from folio.tokenizer import GPT2_PATTERN

PNG = b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR'
WRITERS = {'': open, '.gz': gzip.open, '.bz2': bz2.open, '.xz': lzma.open}


def contents(paths, field='text'):
    """The text of each document of the files."""
    return [''.join(document()) for document in texts.documents(paths, field, False, {})]


def test_files_folders_and_globs_are_read_in_order(home):
    (home / 'texts' / 'deep').mkdir(parents=True)
    (home / 'texts' / '.hidden').write_text('H')
    for name, text in (('b.txt', 'B'), ('a.txt', 'A'), ('deep/c.txt', 'C'), ('d.md', 'D')):
        (home / 'texts' / name).write_text(text)
    for patterns, expected in (
            (['texts'], 'ABDC'), (['texts/*.txt'], 'AB'), (['texts/**/*.txt'], 'ABC'),
            (['texts/d.md', 'texts/a.txt'], 'DA')):
        assert ''.join(contents(texts.input_files(patterns))) == expected


@pytest.mark.parametrize('packed', WRITERS)
def test_text_and_json_lines_are_read_compressed_or_not(tmp_path, packed):
    plain, lines = tmp_path / f'a.txt{packed}', tmp_path / f'b.jsonl{packed}'
    with WRITERS[packed](plain, 'wb') as file:
        file.write('\ufeffstraße\r\n'.encode())
    with WRITERS[packed](lines, 'wb') as file:
        file.write(b'{"text": "one"}\r\n\n{"text": "tw\\ud800o"}')
    assert contents([plain, lines]) == ['straße\n', 'one', 'tw\ufffdo']


@pytest.mark.parametrize('name', ['a.JSONL', 'a.ndjson', 'a.Jsonl.GZ', 'a.json'])
def test_a_kind_is_known_by_its_ending_in_any_case_of_letters(tmp_path, name):
    write = gzip.compress if name.endswith('GZ') else bytes
    (tmp_path / name).write_bytes(write(b'{"text": "one"}\n'))
    assert contents([tmp_path / name]) == ['one']


@pytest.mark.parametrize('name, content, message', [
    ('a.csv', b'a,b', 'a table as JSON lines'), ('a.TAR.GZ', None, 'unpack an archive'),
    ('a.pdf', b'', 'export a doc'), ('a', b'%PDF-1.4\n%\xe2', 'export a document'),
    ('a', PNG, 'picture'), ('a.docx', b'', 'export a doc'), ('a', b'a\0b', 'no plain text'),
    ('a', None, 'unpack an archive'), ('a.txt', 'text'.encode('utf-16'), 'iconv -f UTF-16'),
    ('a.txt.gz', gzip.compress(b'a\0', mtime=0), 'no plain text'),
    ('a.txt', b'Gr\xfc\xdfe', 'iconv -f LATIN1'),
    ('a.json', b'[{"text": "one"}]', 'JSON that is not in lines: .* makes lines of an array'),
    ('a.JSON', b'{\n"text": "one"}', 'JSON that is not in lines'),
    ('a.jsonl', b'["one"]', r'line 1: no text is called text .*\["one"\]'),
    ('a.jsonl', b'{"text": 7}', 'no text is called text'),
    ('a.jsonl', b'[' * 10 ** 5, 'line 1: no text is called text')])
def test_what_is_no_text_is_refused_with_what_to_do(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(gzip.compress(b'x') if content is None else content)
    with pytest.raises(UserError, match=message):
        contents([tmp_path / name])


def test_what_is_no_text_is_left_out_of_a_folder_and_counted(home, capsys):
    (home / 'notes').mkdir()
    for name, content in (('a.txt', b'A'), ('b.PNG', PNG), ('c.png', PNG), ('d.docx', b''),
                          ('e.jsonl', b'{"text": "E"}'), ('f', b'a\0b'), ('.hidden.png', PNG),
                          ('package.json', b'{\n  "name": "x"\n}')):
        (home / 'notes' / name).write_bytes(content)
    assert contents(texts.input_files(['notes'])) == ['A', 'E']
    said = capsys.readouterr().out
    assert said == ('left out of notes: 5 files and links that are not read as text (--input=FILE '
                    'says why), such as b.PNG, c.png, d.docx, f, package.json\n')
    with pytest.raises(UserError, match='b.PNG is no plain text'):
        contents(texts.input_files(['notes/*']))


@pytest.mark.parametrize('pattern, hint', [
    ('pipe', '--input=-'), ('no.txt', 'no such file'), ('hollow', 'a folder without a text')])
def test_why_a_pattern_names_no_file_is_said(home, pattern, hint):
    os.mkfifo(home / 'pipe')
    (home / 'hollow').mkdir()
    with pytest.raises(UserError, match=hint):
        texts.input_files([pattern])


def test_a_file_whose_name_looks_like_a_glob_is_found(home):
    (home / '[a].txt').write_text('A')
    assert contents(texts.input_files(['[a].txt'])) == ['A']


def test_line_ends_become_newlines_wherever_blocks_end_and_are_counted(tmp_path, monkeypatch):
    content = '\ufeffone\r\n\r\r\ntwo\rthree\n\r'.encode()
    path = tmp_path / 'a.txt'
    path.write_bytes(content)
    for size in range(1, len(content) + 1):
        monkeypatch.setattr(texts, 'PIECE', size)
        counts = {}
        document, = texts.documents([path], 'text', False, counts)
        assert ''.join(document()) == 'one\n\r\ntwo\rthree\n\r'
        assert counts == {(path, texts.CRLF): 2}
        document, = texts.documents([path], 'text', True, {})
        assert '\ufeff' + ''.join(document()) == content.decode()


def test_lines_and_rows_without_a_text_are_left_out_and_counted(tmp_path):
    pyarrow, parquet = (pytest.importorskip(name) for name in ('pyarrow', 'pyarrow.parquet'))
    lines, rows = tmp_path / 'a.jsonl', tmp_path / 'b.parquet'
    parquet.write_table(pyarrow.table({'text': [None, None]}), rows)
    assert contents([rows]) == []
    parquet.write_table(pyarrow.table({'text': [None, 'one', '']}), rows)
    lines.write_text('{"text": null}\n{"text": "one"}\n{"text": ""}\n')
    for path in (lines, rows):
        counts = {}
        texts_read = [''.join(document())
                      for document in texts.documents([path], 'text', False, counts)]
        assert texts_read == ['one'] and counts == {(path, texts.EMPTY): 2}


def test_a_column_that_holds_no_texts_is_refused_with_the_kinds_of_all(tmp_path):
    pyarrow, parquet = (pytest.importorskip(name) for name in ('pyarrow', 'pyarrow.parquet'))
    columns = {'numbers': [1, 2], 'lists': [['a'], []], 'structs': [{'a': 'b'}] * 2,
               'bytes': [b'a', b'b'], 'words': pyarrow.array(['a', 'b']).dictionary_encode(),
               'long': pyarrow.array(['a', 'b'], pyarrow.large_string())}
    path = tmp_path / 'a.parquet'
    parquet.write_table(pyarrow.table(columns), path)
    for name in ('numbers', 'lists', 'structs', 'bytes'):
        with pytest.raises(UserError, match=f'no column of texts is called {name} .*int64'):
            contents([path], name)
    assert contents([path], 'words') == contents([path], 'long') == ['a', 'b']


@pytest.mark.parametrize('packed', ['.gz', '.bz2', '.xz', '.zst', '.parquet', '.parquet.gz'])
def test_a_file_cut_short_is_refused(tmp_path, packed):
    text = ''.join(f'{i * i} ' for i in range(9999)).encode()
    if packed == '.zst':
        data = pytest.importorskip('pyzstd').compress(text)
    elif packed == '.parquet':
        data = b'PAR1' + text
    else:
        data = {'.bz2': bz2, '.xz': lzma}.get(packed, gzip).compress(text)
    path = tmp_path / f'x{packed}'
    path.write_bytes(data[:len(data) // 2])
    with pytest.raises(UserError, match=f'x{packed} cannot be read|pip install') as error:
        contents([path])
    assert '\n' not in str(error.value)


def test_zst_is_read_in_frames_and_by_lines(tmp_path):
    pyzstd = pytest.importorskip('pyzstd')
    lines = [json.dumps({'text': f'{i} ' * 99}).encode() + b'\n' for i in range(300)]
    path = tmp_path / 'x.jsonl.zst'
    halves = [b''.join(lines[:150])[:-9], b''.join(lines[:150])[-9:] + b''.join(lines[150:])]
    path.write_bytes(b''.join(map(pyzstd.compress, halves)))
    assert contents([path]) == [f'{i} ' * 99 for i in range(300)]
    wide = {pyzstd.CParameter.windowLog: 28}
    path.write_bytes(pyzstd.compress(lines[0] * 9, wide))
    assert len(contents([path])) == 9


def test_an_empty_file_is_no_document(tmp_path):
    (tmp_path / '_SUCCESS').write_bytes(b'')
    counts = {}
    assert list(texts.documents([tmp_path / '_SUCCESS'], 'text', False, counts)) == []
    assert counts == {(tmp_path / '_SUCCESS', texts.EMPTY): 1}


def test_parquet_is_read_compressed_or_not(tmp_path):
    pyarrow, parquet = (pytest.importorskip(name) for name in ('pyarrow', 'pyarrow.parquet'))
    path = tmp_path / 'a.parquet'
    parquet.write_table(pyarrow.table({'text': ['one', None, 'two']}), path)
    (tmp_path / 'b.parquet.gz').write_bytes(gzip.compress(path.read_bytes()))
    assert contents([path, tmp_path / 'b.parquet.gz']) == ['one', 'two'] * 2
    with pytest.raises(UserError, match='a.parquet: no column of texts is called story .* text'):
        contents([path], 'story')


@pytest.mark.parametrize('content', [b'abcde\xe4x', 'ab世'.encode()[:-1]])
def test_a_broken_character_is_refused_wherever_pieces_end(tmp_path, monkeypatch, content):
    (tmp_path / 'broken').write_bytes(content)
    for size in range(1, len(content) + 1):
        monkeypatch.setattr(texts, 'PIECE', size)
        with pytest.raises(UserError, match='broken is not UTF-8 text.* iconv -f LATIN1'):
            contents([tmp_path / 'broken'])


@given(st.lists(st.text(alphabet='ab .\n', max_size=30)), st.integers(4, 20))
def test_pieces_of_a_document_end_between_words_or_are_full(parts, size):
    text = ''.join(parts)
    pieces = list(texts.at_words(parts, size))
    assert ''.join(pieces) == text and list(texts.at_words([text], size)) == pieces
    assert all(0 < len(piece) <= size for piece in pieces)
    ends = {found.start() for found in texts.WORD_END.finditer(text)}
    for end, piece in zip(itertools.accumulate(map(len, pieces[:-1])), pieces, strict=False):
        assert len(piece) > size // 4 and (end in ends or len(piece) == size)


OTHER, UPPER, LOWER = r'[^\r\n\p{L}\p{N}]', r'[\p{Lu}\p{Lo}\p{M}]', r'[\p{Ll}\p{Lo}\p{M}]'
PATTERNS = {  # how GPT-2's encoding and those after it cut a text into words
    'gpt2': GPT2_PATTERN.replace('$', r'\Z'),
    'cl100k': rf"'(?i:[sdmt]|ll|ve|re)|{OTHER}?+\p{{L}}++|\p{{N}}{{1,3}}+| ?[^\s\p{{L}}\p{{N}}]++"
              r'[\r\n]*+|\s++\Z|\s*[\r\n]|\s+(?!\S)|\s',
    'o200k': rf"{OTHER}?{UPPER}*{LOWER}+(?i:'s|'re)?|{OTHER}?{UPPER}+{LOWER}*(?i:'s|'re)?|"
             r'\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+'}


@pytest.mark.parametrize('name', PATTERNS)
@given(st.text("aB1s'./_ \n\r\t\x1c\xa0\u3000世。½\u0301", max_size=20) | st.text('a/ \n'))
def test_a_text_that_is_cut_where_a_word_ends_has_the_words_of_the_whole(name, text):
    words = regex.compile(PATTERNS[name]).findall
    for found in texts.WORD_END.finditer(text):
        assert words(text[:found.start()]) + words(text[found.start():]) == words(text)


@given(st.lists(st.text(max_size=8)))
def test_groups_hold_all_pieces_and_are_full_but_the_last(pieces):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, 'PIECE', 10)
        groups = list(texts.group_pieces(pieces))
    assert sum(groups, []) == pieces
    assert all(sum(map(len, group)) >= 10 for group in groups[:-1])
    assert all(sum(map(len, group[:-1])) < 10 for group in groups)


def test_a_separator_stands_between_documents_of_one_split():
    passages = [(0, 'train', 'a'), (0, 'train', 'b'), (1, 'val', 'c\n'), (2, 'train', 'd\n'),
                (2, 'train', 'e\n'), (3, 'train', 'f'), (3, 'val', 'g')]
    for by_words, expected in ((False, 'ab|d\ne\nf'), (True, 'ab|d\ne\n|f')):
        pieces = list(texts.separated(passages, by_words))
        assert ''.join(text or '|' for split, text in pieces if split == 'train') == expected
    assert [text for split, text in pieces if split == 'val'] == ['c\n', texts.SEPARATOR, 'g']
