"""Text into token files, those files read again, and what is wrong with a text."""

import base64
import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import subprocess
import sys
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import REPOSITORY, TEXT

import folio.options
import prepare
from folio import texts
from folio.cli import UserError
from folio.tokenizer import Tokenizer, tiktoken_spec
from prepare import Tokens, open_corpus, read_characters
from tools import hf_tokenizer


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
    text = 'Grüße, 世界!\n\n' * 100
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


@pytest.mark.parametrize('number, joined', [(99, True), (100, False)])
def test_from_a_hundred_documents_on_each_is_whole(home, number, joined):
    lines = [f'{zlib.crc32(str(i).encode())}\n' for i in range(number)]
    (home / 'x.jsonl').write_text(''.join(json.dumps({'text': line}) + '\n' for line in lines))
    prepare.main(['--input=x.jsonl', '--tokenizer=byte', '--name=some'])
    _, train, val = read(home / 'data' / 'some')
    assert (train + val == ''.join(lines)) == joined
    assert joined or set((train + val).splitlines()) == set(''.join(lines).splitlines())


def test_standard_input_is_a_document(home, monkeypatch):
    monkeypatch.setattr(prepare.sys, 'stdin', io.TextIOWrapper(io.BytesIO(b'from a pipe ' * 9)))
    prepare.main(['--input=-', '--tokenizer=byte', '--name=some'])
    assert ''.join(read(home / 'data' / 'some')[1:]) == 'from a pipe ' * 9
    assert sorted(path.name for path in (home / 'data' / 'some').iterdir()) == [
        'meta.json', 'train.bin', 'val.bin']


@pytest.mark.parametrize('piped', [b'{"text": "from "}\n{"text": "a pipe"}\n',
                                   b'[\n  {"text": "from a pipe"}]'])
def test_json_on_standard_input_is_refused(home, monkeypatch, piped):
    monkeypatch.setattr(prepare.sys, 'stdin', io.TextIOWrapper(io.BytesIO(piped)))
    with pytest.raises(UserError, match='put it into a file that ends in .jsonl'):
        prepare.main(['--input=-', '--tokenizer=byte', '--name=some'])
    assert not (home / 'data' / 'some').exists()


def test_long_documents_are_not_held_in_memory(home):
    with open(home / 'x.jsonl', 'w') as file:
        for i in range(60):
            file.write(json.dumps({'text': f'{i} ' * 1_000_000}) + '\n')
    program = ('import prepare, folio.options; from pathlib import Path;'
               'folio.options.ROOT = Path.cwd();'
               'prepare.main(["--input=x.jsonl", "--tokenizer=byte", "--name=some"]);'
               'print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])')
    done = subprocess.run([sys.executable, '-c', program], cwd=home, capture_output=True, text=True,
                          env=os.environ | {'PYTHONPATH': str(REPOSITORY)})
    assert int(done.stdout.split()[-1]) < 150_000, done  # kilobytes; the texts have 170,000


def test_a_recipe_whose_library_is_missing_fetches_nothing(home, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pyarrow.parquet', None)
    monkeypatch.setattr('folio.download.fetch_file', lambda *arguments: pytest.fail('it fetched'))
    with pytest.raises(UserError, match='pip install pyarrow'):
        prepare.main(['--url=http://localhost/x.PARQUET?download=true', '--name=some'])
    monkeypatch.setitem(sys.modules, 'tokenizers', None)
    with pytest.raises(UserError, match='pip install tokenizers'):
        prepare.main(['--url=http://localhost/x.txt', '--name=some', '--tokenizer=bpe:300'])


def test_the_name_of_a_raw_file_is_the_end_of_its_url_without_a_query(home, monkeypatch):
    (home / 'mirror').mkdir()
    (home / 'mirror' / 'x.jsonl').write_text('{"text": "one"}\n{"text": "two"}\n')
    monkeypatch.setenv('DATA_MIRROR', str(home / 'mirror'))
    prepare.main(['--url=http://localhost/x.jsonl?download=true#top', '--name=some'])
    assert ''.join(read(home / 'data' / 'some')[1:]) == 'one\ntwo'


def test_a_learned_vocabulary_brings_the_text_back_with_separators_between_documents(home, capsys):
    pytest.importorskip('tokenizers')
    for i in range(3):
        (home / f'{i}.txt').write_text(f'document {i}: straße 🙂 <|endoftext|> \n' * 20)
    prepare.main(['--input=*.txt', '--tokenizer=bpe:300', '--name=some', '--val_fraction=0.2'])
    assert capsys.readouterr().out.count('\n') == 2
    meta, train, val = read(home / 'data' / 'some')
    assert meta['vocab_size'] <= 300 and meta['tokenizer']['name'] == 'bpe:300'
    start = Tokenizer(meta['tokenizer']).start
    ids = np.fromfile(home / 'data' / 'some' / 'train.bin', '<u2').tolist()
    files = sorted(home.glob('*.txt'))
    assert ids.count(start) == len(files) - 1 and start not in (ids[0], ids[-1])
    whole = '<|endoftext|>'.join(path.read_text() for path in files)
    assert train + val == whole


def test_the_tokenizer_json_of_a_vocabulary_gives_the_tokens_of_that_vocabulary(home):
    pytest.importorskip('tokenizers')
    for i, end in enumerate(('\n', '', ' ')):
        (home / f'{i}.txt').write_text(f'document {i}: straße 🙂 ' * 20 + end)
    prepare.main(['--input=*.txt', '--tokenizer=bpe:300', '--name=some'])
    spec = read(home / 'data' / 'some')[0]['tokenizer']
    (home / 'tokenizer.json').write_text(json.dumps(hf_tokenizer.to_json(spec)))
    prepare.main(['--input=*.txt', '--tokenizer=tokenizer.json', '--name=same'])
    for name in ('train.bin', 'val.bin'):
        some, same = ((home / 'data' / folder / name).read_bytes() for folder in ('some', 'same'))
        assert some == same and some


@pytest.mark.parametrize('content, message', [
    ('{"model"', 'is not in the format of tokenizers'),
    (json.dumps(hf_tokenizer.to_json({'kind': 'char', 'chars': 'abc'})), 'has no ids for')])
def test_a_tokenizer_json_that_does_not_do_is_one_line(home, content, message):
    pytest.importorskip('tokenizers')
    (home / 'tokenizer.json').write_text(content)
    with pytest.raises(UserError, match=message) as error:
        prepare.main(['--input=tiny.txt', '--tokenizer=tokenizer.json', '--name=some'])
    assert '\n' not in str(error.value) and not (home / 'data' / 'some').exists()


def test_rare_characters_become_one_unknown(home):
    (home / 'x.txt').write_text('aaaa bbbb ' * 50 + 'ü世')
    prepare.main(['--input=x.txt', '--name=some', '--max_vocab=4'])
    meta, train, val = read(home / 'data' / 'some')
    assert meta['tokenizer']['chars'] == ' ab\ufffd' and val.endswith('b \ufffd\ufffd')
    assert Tokenizer(meta['tokenizer']).encode('axb🙂').tolist() == [1, 3, 2, 3]
    (home / 'y.txt').write_text('ab ' * 9)
    prepare.main(['--input=x.txt,y.txt', '--name=some', '--max_vocab=4'])
    assert '\ufffd\n' in ''.join(read(home / 'data' / 'some')[1:])  # the line between the two


@pytest.mark.parametrize('argv, message', [
    (['--input=no.txt', '--name=x'], 'no.txt: no such file'),
    (['--input=binary', '--name=x'], 'binary is not UTF-8 text'),
    (['--input=empty', '--name=x'], '0 characters are too few'),
    (['--input=tiny.txt', '--name=a/b'], 'a name has'),
    (['--input=tiny.txt'], 'what to prepare'),
    (['--name=x'], 'either input or url'),
    (['--input=tiny.txt', '--url=http://x/y', '--name=x'], 'either input or url'),
    (['--input=tiny.txt', '--name=x', '--val_fraction=1.5'], 'val_fraction'),
    (['--input=tiny.txt', '--name=x', '--tokenizer=gpt5'], 'there are char, byte, gpt2'),
    (['--input=tiny.txt', '--name=x', '--tokenizer=bpe:9'], '257'),
    (['--input=tiny.txt', '--name=x', '--tokenizer=no.json'], 'no.json cannot be read: No such'),
    (['--input=tiny.txt', '--name=x', '--tokenizer=bpe:99999999'], 'to 16,777,216'),
    (['--input=tiny.txt', '--name=x', '--max_vocab=1'], 'max_vocab must be .* >= 2'),
    (['--input=field.jsonl', '--name=x'], 'field.jsonl, line 2: no text is called text .*story'),
    (['--input=broken.jsonl', '--name=x'], 'broken.jsonl, line 1: no text'),
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


@pytest.mark.parametrize('name', sorted(p.stem for p in (REPOSITORY / 'data').glob('*.py')))
def test_every_recipe_can_be_read(name):
    options = prepare.read_options([str(REPOSITORY / 'data' / f'{name}.py')])
    assert options.name == name


@pytest.mark.skipif('DATA_MIRROR' not in os.environ,
                    reason='needs DATA_MIRROR, a folder with tinyshakespeare.txt')
def test_tiny_shakespeare_is_the_known_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(folio.options, 'ROOT', tmp_path)
    prepare.main([str(REPOSITORY / 'data' / 'shakespeare_char.py')])
    meta, train, _ = read(tmp_path / 'data' / 'shakespeare_char')
    assert meta['vocab_size'] == 65 and meta['tokens'] == {'train': 1_003_854, 'val': 111_540}
    assert train.startswith('First Citizen:\nBefore we proceed')


def test_the_next_command_is_the_last_line(home, capsys):
    prepare.main(['--input', 'tiny.txt', '--name', 'x.py', '--workers', '1'])
    *_, report, last = capsys.readouterr().out.splitlines()
    assert last == 'train it: python train.py --dataset=x.py'
    assert 'vocabulary: 40 different characters, 40 ids' in report
    assert read(home / 'data' / 'x.py')[0]['recipe']['name'] == 'x.py'


def test_a_data_set_has_the_name_of_its_recipe_and_not_of_a_text(home):
    (home / 'code.py').write_text(TEXT)
    with pytest.raises(UserError, match='what to prepare'):
        prepare.main(['--input', 'code.py'])
    with pytest.raises(UserError, match=r'tiny.txt: .*; did you mean --input=tiny.txt\?'):
        prepare.main(['tiny.txt', '--name=book'])


def test_line_ends_become_newlines_unless_they_are_kept(home, capsys):
    (home / 'x.txt').write_bytes(b'\xef\xbb\xbf' + b'one\r\ntwo\rthree\n' * 9)
    prepare.main(['--input=x.txt', '--tokenizer=char', '--name=some'])
    assert ''.join(read(home / 'data' / 'some')[1:]) == 'one\ntwo\rthree\n' * 9
    assert '9 line ends \\r\\n became \\n (--crlf=True keeps them)' in capsys.readouterr().out
    prepare.main(['--input=x.txt', '--tokenizer=char', '--name=some', '--crlf=True'])
    assert ''.join(read(home / 'data' / 'some')[1:]) == 'one\r\ntwo\rthree\n' * 9
    assert 'became' not in capsys.readouterr().out


def test_documents_go_where_their_hash_says():
    documents = [lambda letter=letter: [letter] for letter in 'abc']
    chosen = texts.fingerprint(documents[1])[0]
    passages = list(prepare.split_by_hash(documents, {chosen}.__contains__))
    assert passages == [(0, 'train', 'a'), (1, 'val', 'b'), (2, 'train', 'c')]


def test_validation_has_its_share_of_the_characters_up_to_a_document(home):
    stories = [f'{zlib.crc32(str(i).encode())} ' * (1 + i % 7) + '\n' for i in range(120)]
    (home / 'x.jsonl').write_text(''.join(json.dumps({'text': text}) + '\n' for text in stories))
    for fraction in (0.1, 0.35, 0.001, 0.999):
        prepare.main(['--input=x.jsonl', '--tokenizer=byte', '--name=some',
                      f'--val_fraction={fraction}'])
        _, train, val = read(home / 'data' / 'some')
        longest = max(map(len, stories))
        assert abs(len(val) - fraction * len(train + val)) <= max(len(train + val) / 200, longest)
        assert train and val


def test_one_document_that_is_most_of_the_text_is_for_training_whatever_its_hash(home):
    stories = [f'{zlib.crc32(str(i).encode())} ' * 9 + '\n' for i in range(120)]
    fingerprints = [texts.fingerprint(lambda text=text: [text]) for text in stories]
    lowest = min(range(120), key=fingerprints.__getitem__)
    digest, length = fingerprints[lowest]
    fingerprints[lowest] = digest, 100_000
    is_validation = prepare.validation_hashes(fingerprints, 0.01)
    taken = sum(length for digest, length in fingerprints if is_validation(digest))
    assert not is_validation(digest) and 900 < taken < 1200


def test_of_very_many_documents_a_share_of_all_hashes_goes_to_validation():
    few = [(2 ** 63 + i, 1) for i in range(100)]
    is_validation = prepare.validation_hashes(few, 0.25)
    assert [is_validation(2 ** 63 + i) for i in (0, 24, 25, 99)] == [True, True, False, False]
    many = [(2 ** 63 + i, 1) for i in range(prepare.LARGE)]
    is_validation = prepare.validation_hashes(many, 0.25)
    assert is_validation(2 ** 62 - 1) and not is_validation(2 ** 62)


def test_a_document_across_the_cut_comes_in_two_parts():
    documents = [lambda pieces=pieces: pieces
                 for pieces in (['ab', 'c'], [], ['de', '', 'fg'], ['h'])]
    for cut, expected in ((5, ['0abc', '2de', '2FG', '3H']), (3, ['0abc', '2DEFG', '3H']),
                          (1, ['0a', '0BC', '2DEFG', '3H'])):
        parts = {}
        for number, split, text in prepare.split_by_position(documents, cut):
            parts.setdefault((number, split), []).append(text if split == 'train' else text.upper())
        made = [f'{number}{"".join(pieces)}' for (number, _), pieces in parts.items()]
        assert [part for part in made if len(part) > 1] == expected


def test_meta_counts_documents_characters_bytes_and_tokens(home):
    for i, text in enumerate(('ü one\n', 'two', '', 'three\n' * 9)):
        (home / f'{i}.txt').write_text(text)
    prepare.main(['--input=*.txt', '--tokenizer=byte', '--name=some', '--val_fraction=0.3'])
    meta, train, val = read(home / 'data' / 'some')
    whole = ''.join((home / f'{i}.txt').read_text() for i in range(4))
    with_tiny = len(whole) + len(TEXT)
    assert (meta['documents'], meta['characters'], meta['bytes']) == (4, with_tiny, with_tiny + 1)
    assert meta['tokens'] == {'train': len(train.encode()), 'val': len(val.encode())}
    assert sum(meta['tokens'].values()) == meta['bytes'] + 1  # a newline after 'two'


def test_documents_that_leave_a_split_empty_are_refused(home, monkeypatch):
    (home / 'x.jsonl').write_text('{"text": "the same"}\n' * 150)
    monkeypatch.setattr(prepare, 'LARGE', 150)
    with pytest.raises(UserError, match='150 documents leave a split empty'):
        prepare.main(['--input=x.jsonl', '--name=some'])


def test_a_file_of_the_users_beside_the_tokens_stays(home):
    (home / 'data' / 'tiny' / 'notes.tmp').write_text('mine')
    prepare.main(['--input=tiny.txt', '--name=tiny'])
    left = {path.name for path in (home / 'data' / 'tiny').iterdir()}
    assert left == {'notes.tmp', 'train.bin', 'val.bin', 'meta.json'}


def test_a_folder_in_data_may_be_its_own_input(home):
    (home / 'data' / 'mine').mkdir()
    (home / 'data' / 'mine' / 'input.txt').write_text(TEXT)
    for _ in range(2):
        prepare.main(['--input=data/mine', '--name=mine'])
        assert ''.join(read(home / 'data' / 'mine')[1:]) == TEXT


def test_a_folder_with_the_files_of_another_program_is_left_alone(home):
    (home / 'data' / 'tiny' / 'fineweb_train_000001.bin').write_bytes(b'')
    before = contents(home / 'data')
    with pytest.raises(UserError, match='000001.bin is not from prepare.py'):
        prepare.main(['--input=tiny.txt', '--name=tiny'])
    assert before == contents(home / 'data')


def test_a_vocabulary_is_learned_from_no_more_than_a_sample_spread_over_the_text(home, monkeypatch):
    monkeypatch.setattr(texts, 'PIECE', 50)
    monkeypatch.setattr(prepare, 'BPE_PIECE', 50)
    monkeypatch.setattr(prepare, 'BPE_SAMPLE', 2000)
    with gzip.open(home / 'tiny.txt.gz', 'wb') as file:
        file.write(TEXT.encode())
    for name in ('tiny.txt', 'tiny.txt.gz'):
        options = prepare.read_options([f'--input={name}', '--name=some'])
        sample = ''.join(prepare.Source([home / name], options).sample())
        assert 1700 <= len(sample) <= 2050 and '29' in sample[-200:]
    monkeypatch.setattr(prepare, 'BPE_SAMPLE', 10 ** 6)
    assert ''.join(prepare.Source([home / 'tiny.txt'], options).sample()) == TEXT


def test_a_vocabulary_is_learned_from_whole_words_wherever_pieces_are_read(home, monkeypatch):
    monkeypatch.setattr(texts, 'PIECE', 7)
    monkeypatch.setattr(prepare, 'BPE_PIECE', 50)
    options = prepare.read_options(['--input=tiny.txt', '--name=some'])
    pieces = list(prepare.Source([home / 'tiny.txt'], options).sample())
    assert ''.join(pieces) == TEXT and len(pieces) > len(TEXT) / 50
    words = [word for piece in pieces for word in piece.split()]
    assert words == TEXT.split()


def test_less_is_learned_from_where_words_do_not_repeat(home, monkeypatch):
    monkeypatch.setattr(texts, 'PIECE', 1000)
    monkeypatch.setattr(prepare, 'BPE_WORDS', 10_000)
    numbers = ' '.join(map(str, range(1000)))
    for text, whole in ((os.urandom(50_000).hex(), False), (numbers * 50, True)):
        (home / 'x.txt').write_text(text)
        options = prepare.read_options(['--input=x.txt', '--name=some'])
        sample = ''.join(prepare.Source([home / 'x.txt'], options).sample())
        assert text.startswith(sample) and (len(sample) == len(text)) == whole
        assert whole or 10_000 <= len(sample) <= 10_000 + prepare.BPE_PIECE


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='only Linux has it')
@pytest.mark.parametrize('tokenizer', ['char', 'byte', 'gpt2', 'bpe:512'])
def test_forty_megabytes_without_a_space_take_less_than_300_mb(checkout, tokenizer):
    if tokenizer == 'gpt2' and 'TIKTOKEN_CACHE_DIR' not in os.environ:
        pytest.skip('needs TIKTOKEN_CACHE_DIR')
    (checkout / 'long.txt').write_bytes(base64.b64encode(os.urandom(30_000_000)))
    code = ('import sys, pathlib, prepare; prepare.main(sys.argv[1:]); '
            'print(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])')
    printed = subprocess.run(
        [sys.executable, '-c', code, '--input=long.txt', '--name=long', f'--tokenizer={tokenizer}'],
        cwd=checkout, check=True, capture_output=True, text=True).stdout
    assert int(printed.split()[-1]) < 300_000  # kB


def test_the_paths_of_a_recipe_are_kept_relative_to_the_scripts(home):
    (home / 'data' / 'other.py').write_text("input = 'tiny.txt'\n")
    assert open_corpus('other')[2]['recipe']['input'] == ['tiny.txt']


def test_ids_take_two_bytes_where_the_vocabulary_allows_it():
    for size, dtype in ((1 << 16, '<u2'), ((1 << 16) + 1, '<u4')):
        assert prepare.dtype_of(SimpleNamespace(vocab_size=size)) == np.dtype(dtype)


def test_no_bin_is_ever_beside_the_meta_of_another(home, monkeypatch):
    folder, steps = home / 'data' / 'tiny', []

    def replace(source, target):
        steps.append((target.name, sorted(path.name for path in folder.glob('*.bin'))))
        source.rename(target)
    monkeypatch.setattr(prepare.os, 'replace', replace)
    prepare.main(['--input=tiny.txt', '--name=tiny'])
    assert steps == [('meta.json', []), ('val.bin', []), ('train.bin', ['val.bin'])]


def test_reading_a_data_set_loads_neither_the_network_nor_compressions_nor_torch():
    command = 'import sys, {}; print(*{{"torch", "http.client", "lzma"}} & set(sys.modules))'
    loaded = [subprocess.run([sys.executable, '-c', command.format(name)], cwd=REPOSITORY,
                             capture_output=True, text=True, check=True).stdout
              for name in ('numpy', 'prepare')]
    assert loaded[0] == loaded[1]


def test_a_data_set_of_the_old_layout_opens(home):
    folder = home / 'data' / 'old'
    folder.mkdir()
    (home / 'data' / 'old.py').write_text("input = 'tiny.txt'\n")
    recipe = {'input': ['tiny.txt'], 'url': [], 'sha256': [], 'file': None, 'max_files': None,
              'field': 'text', 'tokenizer': 'char', 'max_vocab': None, 'val_fraction': 0.1,
              'workers': None, 'name': 'old'}
    (folder / 'meta.json').write_text(json.dumps({
        'tokenizer': {'kind': 'char', 'chars': 'ab'}, 'vocab_size': 2, 'dtype': 'uint16',
        'tokens': {'train': 4, 'val': 2}, 'documents': 1, 'characters': 6, 'bytes': 6,
        'bytes_per_token': 1.0, 'seconds': 0.0, 'recipe': recipe}))
    (folder / 'train.bin').write_bytes(b'\0\0\1\0\1\0\0\0')
    (folder / 'val.bin').write_bytes(b'\1\0\0\0')
    train, val, meta = open_corpus('old')
    assert (train.read(0, 4).tolist(), val.read(0, 2).tolist()) == ([0, 1, 1, 0], [1, 0])
    assert meta['recipe'] == recipe


def test_the_raw_files_of_a_recipe_are_found_below_the_scripts(home, monkeypatch, tmp_path_factory):
    (home / 'data' / 'other.py').write_text("input = ['tiny.txt', '*.txt']\n")
    monkeypatch.chdir(tmp_path_factory.mktemp('elsewhere'))
    assert prepare.recipe_files('other') == [home / 'tiny.txt'] * 2


# --- token files, read ---------------------------------------------------------------------------

@pytest.fixture
def tokens(tmp_path):
    path = tmp_path / 'some.bin'
    (np.arange(1000) % 50).astype('<u2').tofile(path)
    return Tokens([path], '<u2', 50)


def test_windows_are_the_tokens_at_their_starts(tokens):
    windows = tokens.windows(np.array([0, 49, 990]), 5)
    assert windows.tolist() == [[0, 1, 2, 3, 4], [49, 0, 1, 2, 3], [40, 41, 42, 43, 44]]


def test_a_token_beyond_the_vocabulary_is_named(tokens):
    tokens.vocab_size = 44
    with pytest.raises(UserError, match='has the id 44, beyond the 44 known ids') as error:
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
    with pytest.raises(UserError, match='a.bin is half made.* 10 ids'):
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


def test_more_shards_than_files_may_be_open_are_read(tmp_path):
    import resource
    for i in range(300):
        np.arange(i, i + 2, dtype='<u2').tofile(tmp_path / f'{i:03}.bin')
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = len(os.listdir('/proc/self/fd'))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 280, limits[1]))
    try:
        tokens = Tokens(sorted(tmp_path.iterdir()), '<u2', 400)
        assert [tokens.read(2 * i, 1)[0] for i in range(300)] == list(range(300))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_split_has_the_files_with_its_name_as_a_word(home):
    folder = home / 'data' / 'foreign'
    folder.mkdir()
    for name in ('pretrain_train.bin', 'pretrain_val.bin', 'pretrain_val2.bin'):
        np.arange(9, dtype='<u2').tofile(folder / name)
    train, val, _ = open_corpus('foreign')
    assert (len(train), len(val)) == (9, 18)


def test_a_half_made_data_set_is_refused(home):
    path = home / 'data' / 'tiny' / 'val.bin'
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match='val.bin is half made.*run prepare'):
        open_corpus('tiny')


def test_an_absent_data_set_names_the_recipes_and_the_way_to_make_one(home):
    (home / 'data' / 'known.py').write_text('')
    with pytest.raises(UserError, match='recipes: known;.*prepare.py --input=FILE --name=other'):
        open_corpus('other')


def test_a_missing_data_set_is_prepared_by_its_recipe_but_not_under_torchrun(
        home, monkeypatch, capsys):
    capsys.readouterr()
    (home / 'data' / 'other.py').write_text("input = 'tiny.txt'\ntokenizer = 'byte'\n")
    monkeypatch.setattr(prepare, 'launched', lambda: True)
    with pytest.raises(UserError, match='first run python prepare.py'):
        open_corpus('other')
    monkeypatch.setattr(prepare, 'launched', lambda: False)
    train, val, meta = open_corpus('other')
    assert len(train) + len(val) == len(TEXT) and meta['vocab_size'] == 256
    assert 'train it' not in capsys.readouterr().out  # which is under way


def test_a_recipe_that_changed_is_a_warning(home, capsys):
    recipe = home / 'data' / 'other.py'
    recipe.write_text("input = 'tiny.txt'\ntokenizer = 'byte'\n")
    open_corpus('other')
    meta = json.loads((home / 'data' / 'other' / 'meta.json').read_text())
    del meta['recipe']['crlf']  # an option that was not there when the data set was made
    (home / 'data' / 'other' / 'meta.json').write_text(json.dumps(meta))
    open_corpus('other')
    assert 'warning' not in capsys.readouterr().out
    recipe.write_text("input = 'tiny.txt'\ntokenizer = 'char'\n")
    open_corpus('other')
    printed = capsys.readouterr().out
    assert 'data/other was made with other options than are in the recipe now' in printed
    assert printed.endswith('to make it anew: python prepare.py data/other.py\n')


def test_files_without_meta_are_taken_as_gpt2(home, capsys):
    folder = home / 'data' / 'foreign'
    folder.mkdir()
    for name in ('train.bin', 'val.bin'):
        np.arange(200, dtype='<u2').tofile(folder / name)
    assert open_corpus('foreign')[2]['vocab_size'] == 50257
    assert "taken as GPT-2's" in capsys.readouterr().out


NANOGPT = {'vocab_size': 3, 'stoi': {'\n': 0, 'é': 1, 'Z': 2}, 'itos': {0: '\n', 1: 'é', 2: 'Z'}}


def test_files_of_nanogpt_have_the_characters_of_their_meta_pkl(home):
    folder = home / 'data' / 'foreign'
    folder.mkdir()
    for name in ('train.bin', 'val.bin'):
        np.array([2, 1, 0] * 30, '<u2').tofile(folder / name)
    (folder / 'meta.pkl').write_bytes(pickle.dumps(NANOGPT))
    train, _, meta = open_corpus('foreign')
    assert (len(train), meta['vocab_size']) == (90, 3)
    assert Tokenizer(meta['tokenizer']).decode(train.read(0, 4)) == 'Zé\nZ'


class Harm:
    """What a hostile pickle would do."""

    def __reduce__(self):
        return os.mkdir, ('harm',)


@pytest.mark.parametrize('content', [
    Harm(), NANOGPT | {'more': Harm()}, NANOGPT | {'vocab_size': np.int64(3)},
    NANOGPT | {'more': 1}, NANOGPT | {'vocab_size': 4}, {'vocab_size': 3}, [],
    NANOGPT | {'itos': {0: 'é', 1: '\n', 2: 'Z'}}, NANOGPT | {'stoi': {'\n': 0, 'é': 1, 'Z': 1}},
    'stoi', {'stoi': [], 'itos': []},
    {'vocab_size': 1, 'stoi': {'ab': 0}, 'itos': {0: 'ab'}},
    {'vocab_size': 0, 'stoi': {}, 'itos': {}}, {'vocab_size': 1, 'stoi': {0: 0}, 'itos': {0: 0}},
    {'vocab_size': 1, 'stoi': {'\ud800': 0}, 'itos': {0: '\ud800'}}])
def test_a_meta_pkl_that_holds_anything_else_is_refused_and_not_run(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'meta.pkl'
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match='meta.pkl holds .*; prepare the data again') as error:
        read_characters(path)
    assert not (tmp_path / 'harm').exists() and '\n' not in str(error.value)


def test_a_meta_pkl_cut_anywhere_is_one_line(tmp_path):
    whole = pickle.dumps(NANOGPT)
    for size in range(len(whole)):
        (tmp_path / 'meta.pkl').write_bytes(whole[:size])
        with pytest.raises(UserError, match='prepare the data again'):
            read_characters(tmp_path / 'meta.pkl')


def test_a_vocabulary_above_65536_takes_four_bytes(home):
    folder = home / 'data' / 'tiny'
    meta = json.loads((folder / 'meta.json').read_text())
    for split, count in meta['tokens'].items():
        np.full(count, 70_000, '<u4').tofile(folder / f'{split}.bin')
    (folder / 'meta.json').write_text(json.dumps(meta | {'dtype': 'uint32', 'vocab_size': 70_001}))
    assert open_corpus('tiny')[0].windows([0], 3).tolist() == [[70_000] * 3]
