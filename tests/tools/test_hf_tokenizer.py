"""tokenizer.json in and out: the ids of the library tokenizers are ours, or the file is refused."""

import base64
import itertools
import json
import os

import pytest
from conftest import REPOSITORY
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import tokenizer_json
from script import UserError
from tokenizer import Tokenizer, tiktoken_spec

tokenizers = pytest.importorskip('tokenizers')
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers  # noqa: E402

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


def trained(before, specials=('<|endoftext|>',)):
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = before, decoders.ByteLevel()
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(
        vocab_size=600, special_tokens=list(specials), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tokenizer


def spec_of(ranks, pattern=tokenizer_json.GPT2_PATTERN, special=None):
    text = '\n'.join(f'{base64.b64encode(token).decode()} {i}' for token, i in ranks.items())
    return {'kind': 'bpe', 'name': 'made', 'pattern': pattern, 'ranks': text,
            'special': special or {}}


def read(tokenizer):
    return tokenizer_json.from_json(json.loads(tokenizer.to_str()), 'made', 'tokenizer.json')


def written(spec):
    return tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json.to_json(spec)))


TRAINED = {name: (tokenizer := trained(before), Tokenizer(read(tokenizer)))
           for name, before in BEFORE.items()}


@pytest.mark.parametrize('name', BEFORE)
@given(text=TEXTS)
def test_a_file_that_is_read_gives_the_ids_of_tokenizers(name, text):
    theirs, ours = TRAINED[name]
    assert ours.encode(text).tolist() == theirs.encode(text).ids
    assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize('name', BEFORE)
def test_a_long_text_has_the_same_ids_and_what_was_read_and_written_again_too(name):
    theirs, ours = TRAINED[name]
    again = written(ours.spec)
    for text in TEXT:
        ids = theirs.encode(text).ids
        assert ours.encode(text).tolist() == again.encode(text).ids == ids
        assert again.decode(ids) == text
    assert len(ids) < len(text) / 1.2 and read(again) == ours.spec


@pytest.mark.parametrize('pattern', [CL100K, LLAMA3], ids=['cl100k', 'Llama 3'])
@given(text=TEXTS)
def test_a_file_that_is_written_gives_our_ids(pattern, text):
    spec = TRAINED['Llama 3'][1].spec | {'pattern': pattern}
    ids = Tokenizer(spec).encode(text).tolist()
    assert written(spec).encode(text).ids == ids and written(spec).decode(ids) == text


@given(st.text())
def test_bytes_have_the_same_ids_and_texts(text):
    theirs, ours = written({'kind': 'byte'}), Tokenizer({'kind': 'byte'})
    assert theirs.encode(text).ids == ours.encode(text).tolist()
    assert theirs.decode(theirs.encode(text).ids) == text


@given(st.lists(st.integers(0, 255)))
def test_bytes_that_are_no_text_decode_alike(ids):
    assert written({'kind': 'byte'}).decode(ids) == Tokenizer({'kind': 'byte'}).decode(ids)


@given(st.text(st.characters(exclude_categories=['Cs']), min_size=1), st.data())
def test_characters_have_the_same_ids_and_texts(chars, data):
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


# --- merging by pairs and merging by rank --------------------------------------------------------

def tokens_of(draw, alphabet, most):
    """Tokens of several letters, each two earlier ones (or letters) one after the other."""
    tokens = list(alphabet)
    for _ in range(draw(st.integers(1, most))):
        pair = draw(st.tuples(st.sampled_from(tokens), st.sampled_from(tokens)))
        if sum(map(len, pair)) <= 6 and pair[0] + pair[1] not in tokens:
            tokens.append(pair[0] + pair[1])
            yield pair


def assert_same_everywhere(theirs, ours, letters):
    for length in range(1, 9):
        for text in map(''.join, itertools.product(letters, repeat=length)):
            assert theirs.encode(text).ids == ours.encode(text).tolist(), text


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_merges_that_are_taken_for_ranks_give_the_same_ids_on_every_text(data):
    """Any list of merges: refused, or the same on all short texts of its letters."""
    pairs = list(tokens_of(data.draw, 'ab', 8))
    assume(pairs)
    chars = [tokenizer_json.CHARS[byte] for byte in range(256)]
    vocab = {token: i for i, token in enumerate([*chars, *(a + b for a, b in pairs)])}
    order = data.draw(st.permutations(pairs)) if data.draw(st.booleans()) else pairs
    theirs = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=list(order)))
    theirs.pre_tokenizer = BYTE_LEVEL
    try:
        ours = Tokenizer(read(theirs))
    except UserError:
        return
    assert_same_everywhere(theirs, ours, 'ab')


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_ranks_that_are_written_give_the_same_ids_on_every_text(data):
    """Ranks in any order that merging by rank can reach."""
    tokens = [(a + b).encode() for a, b in tokens_of(data.draw, 'ab', 8)]
    ranks = {token: i for i, token in enumerate([*BYTES, *tokens])}
    assume(all(len(tokenizer_json.merge(token, ranks)) <= 2 for token in ranks))
    spec = spec_of(ranks, tokenizer_json.EACH_CHARACTER + '+')
    assert_same_everywhere(written(spec), Tokenizer(spec), 'ab')


def test_a_token_that_no_merge_reaches_is_taken_whole():
    ranks = {token: i for i, token in enumerate([*BYTES, b'abcd', b'ab', b'cd'])}
    spec = spec_of(ranks)
    assert Tokenizer(spec).encode('abcd').tolist() == written(spec).encode('abcd').ids == [256]
    assert read(written(spec)) == spec


# --- GPT-2 ---------------------------------------------------------------------------------------

@pytest.mark.skipif('TIKTOKEN_CACHE_DIR' not in os.environ, reason='needs TIKTOKEN_CACHE_DIR')
def test_gpt2_from_tokenizer_json_is_gpt2_from_tiktoken():
    spec = tiktoken_spec('gpt2')
    content = tokenizer_json.to_json(spec)
    out = tokenizers.Tokenizer.from_str(json.dumps(content))
    theirs = tokenizers.Tokenizer.from_str(json.dumps(content))
    theirs.pre_tokenizer = GPT2  # as in the file on the hub
    assert read(theirs) == spec
    ours = Tokenizer(spec)
    for text in [*TEXT, "it's 世界  \n\n x 1234 ½²  a\u3000b \t'LL ſ'S"]:
        ids = ours.encode(text).tolist()
        assert theirs.encode(text).ids == out.encode(text).ids == ids


# --- what is refused -----------------------------------------------------------------------------

def changed(**changes):
    content = json.loads(TRAINED['GPT-2'][0].to_str())
    model = {key[6:]: value for key, value in changes.items() if key.startswith('model_')}
    others = {key: value for key, value in changes.items() if not key.startswith('model_')}
    return content | others | {'model': content['model'] | model}


CONTENT = changed()['model']
SWAPPED = [CONTENT['merges'][1], CONTENT['merges'][0], *CONTENT['merges'][2:]]


@pytest.mark.parametrize('changes, message', [
    ({'model_type': 'Unigram', 'model_vocab': {'a': 0}}, 'a Unigram tokenizer'),
    ({'model_type': 'WordPiece'}, 'a WordPiece tokenizer'),
    ({'model_byte_fallback': True}, 'a SentencePiece tokenizer'),
    ({'pre_tokenizer': {'type': 'Metaspace', 'replacement': '_'}}, 'a SentencePiece tokenizer'),
    ({'normalizer': {'type': 'NFC'}}, 'its normalizer NFC'),
    ({'normalizer': {'type': 'Sequence', 'normalizers': [{'type': 'Lowercase'}]}}, 'Lowercase'),
    ({'pre_tokenizer': None}, 'its pre_tokenizer None'),
    ({'pre_tokenizer': {'type': 'ByteLevel', 'add_prefix_space': True}}, 'pre_tokenizer ByteLevel'),
    ({'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': [
        {'type': 'Punctuation'}, {'type': 'ByteLevel'}]}}, 'Punctuation and ByteLevel'),
    ({'model_end_of_word_suffix': '</w>'}, 'end_of_word_suffix'),
    ({'model_vocab': CONTENT['vocab'] | {'世': 9999}}, "token '世' is not written in bytes"),
    ({'model_vocab': {k: v for k, v in CONTENT['vocab'].items() if k != 'ÿ'}}, 'all 256 bytes'),
    ({'model_merges': SWAPPED}, 'out of the order'),
    ({'model_merges': CONTENT['merges'][1:]}, 'as merging by id does')])
def test_what_is_not_byte_level_bpe_is_refused_by_name(changes, message):
    with pytest.raises(UserError, match=message) as error:
        tokenizer_json.from_json(changed(**changes), 'x', 'tokenizer.json')
    assert '\n' not in str(error.value)
