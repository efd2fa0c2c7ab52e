"""tokenizer.json in and out: the ids of the library `tokenizers` are ours."""

import itertools
import json
import os

import pytest
from conftest import REPOSITORY
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from folio.checkpoint import damaged
from folio.cli import UserError
from folio.tokenizer import GPT2_PATTERN, Tokenizer, bpe_spec, tiktoken_spec, train_bpe
from tools import convert, hf_tokenizer

tokenizers = pytest.importorskip('tokenizers')
from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers  # noqa: E402

TEXT = [(REPOSITORY / name).read_text(encoding='utf-8').replace('<|endoftext|>', '')
        for name in ('README.md', 'model.py')]
BYTES = [bytes([byte]) for byte in range(256)]
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+"
          r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
CL100K = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++"
          r"[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s")
BEFORE = {
    'GPT-2': GPT2,
    'Llama 3': pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3), 'isolated'), BYTE_LEVEL]),
    'matches': pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3), 'removed', invert=True), BYTE_LEVEL]),
    'digits': pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2]),
    'none': BYTE_LEVEL}
TEXTS = (st.text() | st.text("ab '0 1\n\r\tĲéſstKd٣²½_\u3000\u0301", max_size=40)).filter(
    lambda text: '<|endoftext|>' not in text)  # which is a token there, and text for us
NEEDS_GPT2 = pytest.mark.skipif('TIKTOKEN_CACHE_DIR' not in os.environ,
                                reason='needs TIKTOKEN_CACHE_DIR')


def trained(before):
    """A byte-level BPE of the library's own, after this pre_tokenizer."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer, library.decoder = before, decoders.ByteLevel()
    library.train_from_iterator(TEXT, trainers.BpeTrainer(
        vocab_size=600, special_tokens=['<|endoftext|>'], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return library


def spec_of(ranks, pattern=GPT2_PATTERN):
    return bpe_spec('made', ranks, pattern, {})


def read(library):
    return hf_tokenizer.from_json(json.loads(library.to_str()), 'made')


def written(spec):
    return tokenizers.Tokenizer.from_str(json.dumps(hf_tokenizer.to_json(spec)))


TRAINED = {name: (library := trained(before), Tokenizer(read(library)))
           for name, before in BEFORE.items()}
LEARNED = train_bpe(TEXT, 600)
PATTERNS = {'gpt2': GPT2_PATTERN, 'cl100k': CL100K, 'llama': LLAMA3}
EXPORTED = {name: (written(spec := LEARNED | {'pattern': pattern}), Tokenizer(spec))
            for name, pattern in PATTERNS.items()}


# --- any file ------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', BEFORE)
@settings(max_examples=50, deadline=None)
@given(text=TEXTS)
def test_a_file_that_is_read_gives_the_ids_of_the_library(name, text):
    theirs, ours = TRAINED[name]
    assert ours.encode(text).tolist() == theirs.encode(text).ids
    assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize('name', BEFORE)
def test_it_is_kept_whole_and_written_as_it_was(name):
    theirs, ours = TRAINED[name]
    content = json.loads(theirs.to_str())
    assert ours.spec['kind'] == 'json' and ours.spec['name'] == 'made'
    assert hf_tokenizer.to_json(ours.spec) == content == json.loads(ours.spec['json'])
    assert read(written(ours.spec)) == ours.spec
    for text in TEXT:
        ids = ours.encode(text).tolist()
        assert ids == theirs.encode(text).ids and ours.decode(ids) == text
        assert sum(len(ours.token_bytes[i]) for i in ids) == len(text.encode())


# --- byte-pair encodings -------------------------------------------------------------------------

@pytest.mark.parametrize('name', EXPORTED)
@settings(max_examples=50, deadline=None)
@given(text=TEXTS)
def test_a_byte_pair_encoding_that_is_written_gives_our_ids(name, text):
    theirs, ours = EXPORTED[name]
    ids = ours.encode(text).tolist()
    assert theirs.encode(text).ids == ids and theirs.decode(ids) == text


def test_what_was_learned_has_the_same_ids_there_and_comes_back_as_a_json_with_the_same_bytes():
    theirs, ours = EXPORTED['gpt2']
    back = Tokenizer(read(theirs))
    assert back.kind == 'json' and back.token_bytes == ours.token_bytes
    for text in TEXT:
        ids = ours.encode(text).tolist()
        assert theirs.encode(text).ids == back.encode(text).tolist() == ids
        assert theirs.decode(ids) == text and len(ids) < len(text) / 1.2


def test_the_end_of_a_text_is_a_special_token_there():
    theirs = EXPORTED['gpt2'][0]
    number = LEARNED['special']['<|endoftext|>']
    assert theirs.token_to_id('<|endoftext|>') == number
    assert theirs.encode('a<|endoftext|>').ids[-1] == number
    assert theirs.decode([number]) == ''  # special tokens are skipped


# --- merging by pairs and merging by rank --------------------------------------------------------

def tokens_of(draw, alphabet, most):
    """Tokens of several letters, each two earlier ones (or letters) one after the other."""
    tokens = list(alphabet)
    for _ in range(draw(st.integers(1, most))):
        pair = draw(st.tuples(st.sampled_from(tokens), st.sampled_from(tokens)))
        if sum(map(len, pair)) <= 6 and pair[0] + pair[1] not in tokens:
            tokens.append(pair[0] + pair[1])
            yield pair


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_ranks_that_are_written_give_the_same_ids_on_every_text(data):
    """Ranks in any order that merging by rank can reach."""
    tokens = [(a + b).encode() for a, b in tokens_of(data.draw, 'ab', 8)]
    ranks = {token: i for i, token in enumerate([*BYTES, *tokens])}
    assume(all(len(hf_tokenizer.parts_of(token, ranks)) <= 2 for token in ranks))
    spec = spec_of(ranks, hf_tokenizer.EACH_CHARACTER + '+')
    theirs, ours = written(spec), Tokenizer(spec)
    for length in range(1, 9):
        for text in map(''.join, itertools.product('ab', repeat=length)):
            assert theirs.encode(text).ids == ours.encode(text).tolist(), text


def test_a_token_that_no_merge_reaches_is_taken_whole():
    ranks = {token: i for i, token in enumerate([*BYTES, b'abcd', b'ab', b'cd'])}
    spec = spec_of(ranks)
    assert Tokenizer(spec).encode('abcd').tolist() == written(spec).encode('abcd').ids == [256]
    assert Tokenizer(read(written(spec))).encode('abcd').tolist() == [256]


def test_a_token_without_parts_is_taken_whole():
    spec = spec_of({token: i for i, token in enumerate([*BYTES, b'abc'])})
    assert Tokenizer(spec).encode('abc').tolist() == written(spec).encode('abc').ids == [256]


def test_a_possessive_repetition_cuts_numbers_at_the_same_places():
    spec = spec_of({token: i for i, token in enumerate([*BYTES, b'00', b'0000'])}, CL100K)
    ids = Tokenizer(spec).encode('0000').tolist()
    assert written(spec).encode('0000').ids == ids == [256, ord('0'), ord('0')]


# --- bytes and characters ------------------------------------------------------------------------

@given(st.text())
def test_bytes_have_the_same_ids_and_texts(text):
    theirs, ours = written({'kind': 'byte'}), Tokenizer({'kind': 'byte'})
    assert theirs.encode(text).ids == ours.encode(text).tolist()
    assert theirs.decode(theirs.encode(text).ids) == text


@given(st.lists(st.integers(0, 255)))
def test_bytes_that_are_no_text_decode_alike(ids):
    assert written({'kind': 'byte'}).decode(ids) == Tokenizer({'kind': 'byte'}).decode(ids)


@given(st.text(st.characters(exclude_categories=['Cs']), min_size=1), st.data())
def test_characters_have_the_same_ids_and_texts_and_come_back_as_characters(chars, data):
    spec = {'kind': 'char', 'chars': ''.join(sorted(set(chars)))}
    text = data.draw(st.text(st.sampled_from(spec['chars'])))
    theirs, ours = written(spec), Tokenizer(spec)
    assert theirs.encode(text).ids == ours.encode(text).tolist()
    assert theirs.decode(theirs.encode(text).ids) == text
    assert read(theirs) == spec


def test_an_unknown_character_is_the_same_one_there_too():
    spec = {'kind': 'char', 'chars': 'ab\ufffd', 'unknown': '\ufffd'}
    ids = Tokenizer(spec).encode('axb🙂').tolist()
    assert written(spec).encode('axb🙂').ids == ids == [0, 2, 1, 2]
    assert read(written(spec)) == spec


def test_a_character_that_is_not_in_the_vocabulary_is_an_error_there_too():
    with pytest.raises(Exception, match='WordLevel'):
        written({'kind': 'char', 'chars': 'ab'}).encode('abc')


def test_bytes_come_back_as_bytes():
    assert read(written({'kind': 'byte'})) == {'kind': 'byte'}


@pytest.mark.parametrize('spec', [{'kind': 'byte'}, {'kind': 'char', 'chars': 'abc'}])
@pytest.mark.parametrize('changes', [
    {'normalizer': {'type': 'Lowercase'}}, {'pre_tokenizer': {'type': 'Whitespace'}},
    {'decoder': None},
    {'added_tokens': [{'id': 999, 'content': 'abc', 'single_word': False, 'lstrip': False,
                       'rstrip': False, 'normalized': False, 'special': True}]}])
def test_a_file_that_differs_from_what_was_written_stays_as_it_is(spec, changes):
    content = hf_tokenizer.to_json(spec) | changes
    back = hf_tokenizer.from_json(content, 'other')
    assert back['kind'] == 'json' and json.loads(back['json']) == content


# --- two files -----------------------------------------------------------------------------------

@pytest.mark.parametrize('special', [{'<|endoftext|>': 257}, {}])
def test_vocab_json_and_merges_txt_have_the_ids_and_special_tokens_that_they_name(
        tmp_path, special):
    spec = spec_of({token: i for i, token in enumerate([*BYTES, b'ab'])}) | {'special': special}
    model = hf_tokenizer.to_json(spec)['model']
    (tmp_path / 'vocab.json').write_text(json.dumps(model['vocab']), encoding='utf-8')
    (tmp_path / 'merges.txt').write_text('#version: 0.2\na b\n', encoding='utf-8')
    back, ours = Tokenizer(hf_tokenizer.from_merges(tmp_path, 'x')), Tokenizer(spec)
    assert back.special == special and back.vocab_size == ours.vocab_size
    text = 'ab <|endoftext|>'
    assert back.encode(text).tolist() == ours.encode(text).tolist()


# --- GPT-2 ---------------------------------------------------------------------------------------

@NEEDS_GPT2
def test_gpt2_from_tokenizer_json_is_gpt2_from_tiktoken():
    spec = tiktoken_spec('gpt2')
    out, theirs = written(spec), written(spec)
    theirs.pre_tokenizer = GPT2  # as in the file on the hub
    assert read(theirs) == read(out) == spec
    ours = Tokenizer(spec)
    for text in [*TEXT, "it's 世界  \n\n x 1234 ½²  a\u3000b \t'LL ſ'S"]:
        ids = ours.encode(text).tolist()
        assert theirs.encode(text).ids == out.encode(text).ids == ids


@NEEDS_GPT2
def test_gpt2_with_a_template_is_gpt2():
    theirs = written(tiktoken_spec('gpt2'))
    theirs.post_processor = processors.TemplateProcessing(
        '<|endoftext|> $A', special_tokens=[('<|endoftext|>', 50256)])
    assert read(theirs) == tiktoken_spec('gpt2')


@NEEDS_GPT2
def test_what_is_like_gpt2_but_cuts_or_merges_otherwise_is_a_json():
    content = hf_tokenizer.to_json(tiktoken_spec('gpt2'))
    hub = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True}
    pairs = [merge.split(' ') for merge in content['model']['merges']]  # as newer files have them
    as_pairs = content | {'pre_tokenizer': hub, 'model': content['model'] | {'merges': pairs}}
    assert hf_tokenizer.from_json(as_pairs, 'mine')['kind'] == 'bpe'
    fewer = {'model': content['model'] | {'merges': pairs[:-1]}}
    end, = content['added_tokens']
    more = {'added_tokens': [end, end | {'content': 'x', 'id': 50257}]}
    plain = {'added_tokens': [end | {'special': False}]}
    random = {'model': content['model'] | {'dropout': 0.1}}
    for changes in ({'pre_tokenizer': hub | {'add_prefix_space': True}}, {'pre_tokenizer': None},
                    {'pre_tokenizer': hub | {'use_regex': False}}, fewer, more, plain, random,
                    {'normalizer': {'type': 'NFC'}}):
        assert hf_tokenizer.from_json(content | changes, 'mine')['kind'] == 'json'


# --- odd files -----------------------------------------------------------------------------------

WHOLE = hf_tokenizer.to_json({'kind': 'byte'})
NO_DICT = [1, None, [], 'a', {}, {'type': 'BPE'}, {'vocab': 1}, {'type': 'BPE', 'vocab': {'a': 0}},
           {'type': 'WordPiece', 'vocab': ['a']}, {'type': 'BPE', 'vocab': {'a': 'b', 'c': 0}},
           {'type': 'Other', 'vocab': {}}, {'type': 'BPE', 'vocab': {'a': 0}, 'merges': ['a b c']}]


@pytest.mark.parametrize('changes', [
    *({'model': model} for model in NO_DICT), {'pre_tokenizer': 1}, {'pre_tokenizer': {'type': 1}},
    {'added_tokens': [1]}, {'added_tokens': [{}]}, {'decoder': {'type': 'Nothing'}},
    {'normalizer': {'type': 'Two\nlines'}}], ids=str)
def test_what_is_no_tokenizer_json_is_one_line(changes, tmp_path):
    (tmp_path / 'tokenizer.json').write_text(json.dumps(WHOLE | changes))
    with pytest.raises(UserError, match='is damaged|is not in the format of ') as error:
        with damaged('odd'):
            Tokenizer(convert.read_tokenizer(tmp_path, 'odd', 'gpt2'))
    assert '\n' not in str(error.value)


def test_a_cut_file_is_one_line(tmp_path):
    (tmp_path / 'tokenizer.json').write_text(json.dumps(WHOLE)[:-9])
    with pytest.raises(UserError, match="tokenizer.json can't be read: JSONDecodeError") as error:
        convert.read_tokenizer(tmp_path, 'odd', 'gpt2')
    assert '\n' not in str(error.value)
