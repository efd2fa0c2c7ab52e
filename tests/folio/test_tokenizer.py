"""Text to ids and back."""

import base64
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st

from folio import tokenizer as module
from folio.cli import UserError
from folio.tokenizer import (
    BYTES,
    GPT2_PATTERN,
    Tokenizer,
    bpe_spec,
    name_of,
    read_ranks,
    same_tokenizer,
    tiktoken_spec,
    train_bpe,
)

tokenizers = pytest.importorskip('tokenizers')
from tokenizers import (  # noqa: E402
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

BYTE = Tokenizer({'kind': 'byte'})
RANKS = '\n'.join([f'{base64.b64encode(bytes([i])).decode()} {i}' for i in range(256)]
                  + ['dGg= 256', 'dGhl 257', 'IHQ= 258'])  # th, the, and a space with t
SPEC = {'kind': 'bpe', 'name': 'small', 'pattern': r' ?\p{L}+|\s+|[^\s\p{L}]+', 'ranks': RANKS,
        'special': {'<|endoftext|>': 259}}
CORPUS = ['the quick brown fox jumps over the lazy dog', 'Grüße, the 世界 of  two spaces\n'] * 20
NEEDS_GPT2 = pytest.mark.skipif('TIKTOKEN_CACHE_DIR' not in os.environ,
                                reason='needs TIKTOKEN_CACHE_DIR')


@given(st.text())
def test_bytes_and_bpe_bring_any_text_back(text):
    for tokenizer in (BYTE, Tokenizer(SPEC)):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.text(alphabet='aß世🙂\n\r', max_size=50))
def test_characters_bring_a_text_of_their_vocabulary_back(text):
    tokenizer = Tokenizer({'kind': 'char', 'chars': '\n\raß世🙂'})
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and len(ids) == len(text)


def test_bytes_of_ascii_are_ord():
    assert BYTE.encode('Az\n').tolist() == [65, 122, 10]


def test_bpe_merges_by_rank_and_takes_special_tokens_in_a_text_as_text():
    tokenizer = Tokenizer(SPEC)
    assert tokenizer.encode('the').tolist() == [257]
    assert 259 not in tokenizer.encode('<|endoftext|>') and tokenizer.start == 259
    assert tokenizer.vocab_size == 260


@pytest.mark.parametrize('pattern', [SPEC['pattern'], GPT2_PATTERN])
@pytest.mark.parametrize('run', [' ', '\n', '\r\n', '\u3000', 'a'])
def test_a_run_of_a_million_and_more_spaces_is_encoded(run, pattern):
    tokenizer, run = Tokenizer(SPEC | {'pattern': pattern}), 1_100_000 * run
    text = f'the {run}x the'
    ids = tokenizer.encode(text).tolist()
    assert tokenizer.decode(ids) == text
    before, after = (tokenizer.encode(part).tolist() for part in ('the  ', 'x the'))
    assert ids[:1] + ids[-len(after):] == before[:1] + after


def test_a_text_of_many_pieces_is_encoded_as_a_whole():
    tokenizer, text = Tokenizer(SPEC), 'xx' + 100_000 * 'the '  # a piece would end in 'th'
    assert tokenizer.encode(text).tolist() == tokenizer.encoding.encode_ordinary(text)
    assert not len(tokenizer.encode(''))


def test_an_id_that_no_token_has_stands_for_nothing():
    tokenizer = Tokenizer(SPEC | {'special': {'<|endoftext|>': 300}})
    assert tokenizer.vocab_size == 301 and tokenizer.token_bytes[280] == b''
    assert tokenizer.decode([257, 280, 257]) == 'thethe'


def test_an_id_that_makes_the_list_of_all_too_long_is_refused():
    with pytest.raises(ValueError, match='an id is 16777216'):
        Tokenizer(SPEC | {'special': {'<|endoftext|>': 1 << 24}})


def test_an_unknown_character_is_shown_with_its_position():
    with pytest.raises(UserError, match=r"'é' \(at position 2\)"):
        Tokenizer({'kind': 'char', 'chars': 'abc'}).encode('abéc')


def test_an_unknown_character_is_the_vocabulary_s_own_one_where_it_has_one():
    tokenizer = Tokenizer({'kind': 'char', 'chars': 'ab?', 'unknown': '?'})
    assert tokenizer.encode('aéb🙂').tolist() == [0, 2, 1, 2]


def test_an_unknown_kind_is_one_line():
    with pytest.raises(UserError, match="unknown kind of tokenizer: 'word'"):
        Tokenizer({'kind': 'word'})


@given(st.text(max_size=20))
def test_a_stream_gives_the_text_as_soon_as_it_is_complete(text):
    decode = BYTE.stream()
    assert ''.join(decode(i) for i in BYTE.encode(text).tolist()) == text


def test_a_stream_shows_a_byte_that_is_no_text():
    decode = BYTE.stream()
    assert ''.join(map(decode, b'a\xffb')) == 'a\ufffdb'


def test_a_stream_shows_an_unknown_character_at_once():
    decode = Tokenizer({'kind': 'char', 'chars': 'ab\ufffd', 'unknown': '\ufffd'}).stream()
    assert [decode(i) for i in (0, 2, 1)] == ['a', '\ufffd', 'b']


def test_a_text_starts_with_the_end_of_another_or_else_a_newline():
    assert BYTE.start == 10 and Tokenizer({'kind': 'char', 'chars': 'ab'}).start == 0


def test_a_tokenizer_survives_json():
    spec = json.loads(json.dumps(SPEC))
    assert Tokenizer(spec).encode('the the').tolist() == Tokenizer(SPEC).encode('the the').tolist()


def test_names_say_what_the_vocabulary_is():
    assert name_of(SPEC) == 'small' and name_of({'kind': 'byte'}) == 'bytes'
    assert name_of({'kind': 'char', 'chars': 'abc'}) == '3 different characters'
    assert name_of(None) == 'an unknown tokenizer'


def test_an_unknown_name_lists_the_choices():
    with pytest.raises(UserError, match='char, byte, gpt2'):
        tiktoken_spec('gpt5')


def test_the_pattern_of_gpt2_is_tiktoken_s():
    from tiktoken_ext.openai_public import r50k_pat_str
    assert r50k_pat_str == GPT2_PATTERN


def test_gpt2_s_visible_characters_are_those_of_tokenizers():
    assert sorted(BYTES) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(BYTES.values()) == list(range(256))


@NEEDS_GPT2
def test_gpt2_agrees_with_tiktoken():
    import tiktoken
    text = (REPOSITORY / 'model.py').read_text(encoding='utf-8') + " it's 世界  \n\n x"
    tokenizer = Tokenizer(tiktoken_spec('gpt2'))
    assert tokenizer.encode(text).tolist() == tiktoken.get_encoding('gpt2').encode_ordinary(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text and tokenizer.start == 50256


def test_a_vocabulary_that_cannot_be_fetched_is_one_line(tmp_path):
    code = ('from folio import cli, tokenizer\n'
            'cli.run(lambda argv: tokenizer.tiktoken_spec("gpt2"))')
    nowhere = {name: 'http://127.0.0.1:9' for name in ('HTTPS_PROXY', 'https_proxy')}
    result = subprocess.run(
        [sys.executable, '-c', code], cwd=REPOSITORY, capture_output=True, text=True,
        env={**os.environ, 'TIKTOKEN_CACHE_DIR': str(tmp_path), **nowhere})
    assert result.returncode == 1 and result.stderr.count('\n') == 1
    assert 'TIKTOKEN_CACHE_DIR' in result.stderr


# --- a vocabulary that is learned ----------------------------------------------------------------

def test_a_learned_vocabulary_has_all_bytes_then_its_merges_then_the_end_of_a_text():
    spec = train_bpe(iter(CORPUS), 300)
    tokenizer = Tokenizer(spec)
    assert spec['name'] == 'bpe:300' and tokenizer.vocab_size == 300 and tokenizer.start == 299
    assert sorted(tokenizer.token_bytes[:256]) == [bytes([byte]) for byte in range(256)]
    assert b' the' in tokenizer.token_bytes and len(tokenizer.encode(CORPUS[0])) < 35
    assert tokenizer.decode(tokenizer.encode('Ω new 🙂 text')) == 'Ω new 🙂 text'


def test_a_text_that_gives_no_more_ids_has_fewer():
    tokenizer = Tokenizer(train_bpe(['ab ab ab'], 1000))
    assert tokenizer.vocab_size == 259 and tokenizer.token_bytes[256:] == [
        b'ab', b' ab', b'<|endoftext|>']


def test_only_words_longer_than_any_of_ordinary_text_are_learned_from_in_parts(monkeypatch):
    texts = ['abcdefgh ' * 9, 'abcd' * 500, ' ' * 5000]
    whole = Tokenizer(train_bpe(texts, 1000)).token_bytes[256:-1]
    assert b'abcdefgh' in whole and max(map(len, whole)) == module.LONG_WORD
    monkeypatch.setattr(module, 'LONG_WORD', 6)
    parts = Tokenizer(train_bpe(texts, 1000)).token_bytes[256:-1]
    assert b'abcdef' in parts and max(map(len, parts)) == 6


def test_without_the_library_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'tokenizers', None)
    with pytest.raises(UserError, match='to learn a vocabulary: pip install tokenizers'):
        train_bpe(['ab'], 300)
    with pytest.raises(UserError, match='the tokenizer mine: pip install tokenizers'):
        Tokenizer({'kind': 'json', 'name': 'mine', 'json': '{}'})


# --- what `tokenizers` runs ----------------------------------------------------------------------

def sentencepiece_bpe():
    """As in Llama 2's tokenizer.json: BPE, bytes for unknown characters, a space before a text."""
    library = tokenizers.Tokenizer(models.BPE(unk_token='<unk>', byte_fallback=True, fuse_unk=True))
    library.normalizer = normalizers.Sequence([
        normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
    library.decoder = decoders.Sequence([
        decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(' ', 1, 0)])
    pieces = ['<unk>', '<s>', '</s>', *(f'<0x{byte:02X}>' for byte in range(256))]
    library.pre_tokenizer = pre_tokenizers.Metaspace()  # no merges across words
    library.train_from_iterator(['the quick fox the dog two'] * 9, trainers.BpeTrainer(
        vocab_size=320, special_tokens=pieces, show_progress=False))
    content = json.loads(library.to_str()) | {'pre_tokenizer': None}
    content['added_tokens'] = content['added_tokens'][:3]  # bytes are ordinary tokens
    return content


def sentencepiece_metaspace():
    """BPE with a Metaspace in place of the normalizer, as newer converters write it."""
    content = sentencepiece_bpe()
    space = {'type': 'Metaspace', 'replacement': '▁', 'prepend_scheme': 'first', 'split': False}
    return content | {'normalizer': None, 'pre_tokenizer': space}


def sentencepiece_without_a_space_before():
    """As in Gemma's: a text begins as it is, and no space of it is dropped."""
    content, decoder = sentencepiece_bpe(), decoders.Sequence([
        decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse()])
    library = tokenizers.Tokenizer.from_str(json.dumps(content))
    library.normalizer, library.decoder = normalizers.Replace(' ', '▁'), decoder
    return json.loads(library.to_str())


def unigram():
    """As in T5's: a Unigram model after a Metaspace."""
    words = [('▁the', -1), ('▁quick', -1), ('▁fox', -1), ('two', -1), ('▁', -2)]
    letters = [(chr(code), -5) for code in range(33, 127)]
    model = models.Unigram([('<unk>', 0), ('</s>', 0), *words, *letters], unk_id=0)
    library = tokenizers.Tokenizer(model)
    library.pre_tokenizer, library.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return json.loads(library.to_str())


def byte_level():
    """A byte-level BPE that changes texts (NFC), with an id that no token has."""
    library = tokenizers.Tokenizer(models.BPE())
    library.normalizer = normalizers.NFC()
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=300, special_tokens=['<|endoftext|>'], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    content = json.loads(library.to_str())
    content['added_tokens'].append(content['added_tokens'][0] | {'id': 310, 'content': '<|end|>'})
    content['model']['vocab']['<|end|>'] = 310
    return content


CONTENTS = {'bpe': sentencepiece_bpe(), 'unigram': unigram(), 'byte level': byte_level(),
            'metaspace': sentencepiece_metaspace(),
            'no space': sentencepiece_without_a_space_before()}
LIBRARIES = {name: tokenizers.Tokenizer.from_str(json.dumps(content))
             for name, content in CONTENTS.items()}
OURS = {name: Tokenizer({'kind': 'json', 'name': name, 'json': json.dumps(content)})
        for name, content in CONTENTS.items()}
MIXED = 'the quick  foxes, Ünïcode 世界 🙂\n\n of the dog'
TEXTS = {'bpe': MIXED, 'metaspace': MIXED, 'no space': MIXED, 'unigram': 'the quick fox, (two)',
         'byte level': 'the quick  foxes, 世界 🙂\n\n of the dog'}


@pytest.mark.parametrize('name', TEXTS)
def test_a_tokenizer_json_gives_the_ids_and_texts_of_the_library(name):
    ours, library, text = OURS[name], LIBRARIES[name], TEXTS[name]
    ids = ours.encode(text).tolist()
    assert ids == library.encode(text, add_special_tokens=False).ids
    assert ours.decode(ids) == library.decode(ids) == text
    assert ours.vocab_size == max(library.get_vocab().values()) + 1
    assert name_of(ours.spec) == name


@pytest.mark.parametrize('name', TEXTS)
def test_its_token_bytes_are_those_of_the_text_but_for_the_space_before_it(name):
    ours, text = OURS[name], TEXTS[name]
    pieces = [ours.token_bytes[i] for i in ours.encode(text).tolist()]
    space = b'' if name in ('byte level', 'no space') else b' '
    assert b''.join(pieces) == space + text.encode() and len(pieces) < len(text.encode())


@pytest.mark.parametrize('name', TEXTS)
def test_its_stream_is_the_text_in_whole_characters(name):
    ours, text = OURS[name], TEXTS[name]
    decode = ours.stream()
    parts = [decode(i) for i in ours.encode(text).tolist()]
    assert ''.join(parts) == text and sum(map(bool, parts)) > 5
    assert not any('\ufffd' in part for part in parts)


@pytest.mark.parametrize('name', ['bpe', 'metaspace', 'no space', 'unigram'])
def test_a_stream_after_a_prompt_keeps_the_space_of_its_first_word(name):
    ours = OURS[name]
    whole, past = ours.encode('the quick fox').tolist(), ours.encode('the').tolist()
    assert whole[:len(past)] == past
    decode = ours.stream(past)
    assert ''.join(decode(i) for i in whole[len(past):]) == ' quick fox'


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(['the', ' ', '  ', 'dog', '世', '🙂', '\n', 'é', 'x'])))
def test_any_stream_of_sentencepiece_is_its_text(parts):
    for name in ('bpe', 'metaspace', 'no space'):
        ids = OURS[name].encode(text := ''.join(parts)).tolist()
        decode = OURS[name].stream()
        assert ''.join(map(decode, ids)) == OURS[name].decode(ids)
        assert name == 'metaspace' or OURS[name].decode(ids) == text


def test_bytes_that_are_no_text_are_held_back_and_do_not_stop_a_stream():
    ours = OURS['byte level']
    ids = [ours.token_bytes.index(byte) for byte in (b'\xff', b'\xe4', b'\xb8', b'\x96', b'a')]
    decode = ours.stream()
    assert ''.join(map(decode, ids)) == '\ufffd世a'


def test_special_tokens_in_a_text_are_text_and_the_start_of_one_is_known():
    for name, special in (('byte level', '<|endoftext|>'), ('bpe', '<s>')):
        ours = OURS[name]
        number = LIBRARIES[name].token_to_id(special)
        assert ours.start == number and ours.token_bytes[number] == special.encode()
        assert number not in ours.encode(f'the {special} dog')
        assert ours.decode(ours.encode(f'the {special} dog')) == f'the {special} dog'


def test_an_id_that_no_token_of_a_file_has_stands_for_nothing():
    ours = OURS['byte level']
    assert ours.vocab_size == 311 and ours.token_bytes[305] == b''
    assert ours.token_bytes[310] == b'<|end|>'


def test_a_special_token_beyond_the_bytes_characters_is_its_own_text():
    content = json.loads(json.dumps(CONTENTS['byte level']))
    content['added_tokens'].append(content['added_tokens'][0] | {'id': 311, 'content': '<｜世｜>'})
    content['model']['vocab']['<｜世｜>'] = 311
    ours = Tokenizer({'kind': 'json', 'name': 'wide', 'json': json.dumps(content)})
    assert ours.token_bytes[311] == '<｜世｜>'.encode()


def test_what_a_file_says_of_cutting_and_padding_is_not_done():
    content = CONTENTS['bpe'] | {'truncation': {
        'direction': 'Right', 'max_length': 2, 'strategy': 'LongestFirst', 'stride': 0},
        'padding': {'strategy': {'Fixed': 200}, 'direction': 'Right', 'pad_to_multiple_of': None,
                    'pad_id': 0, 'pad_type_id': 0, 'pad_token': '<unk>'}}
    spec = {'kind': 'json', 'name': 'short', 'json': json.dumps(content)}
    assert Tokenizer(spec).encode(MIXED).tolist() == OURS['bpe'].encode(MIXED).tolist()


def test_what_its_template_adds_is_no_token_of_a_text():
    library = tokenizers.Tokenizer.from_str(json.dumps(CONTENTS['bpe']))
    library.post_processor = processors.TemplateProcessing(
        single='<s> $A', special_tokens=[('<s>', library.token_to_id('<s>'))])
    ours = Tokenizer({'kind': 'json', 'name': 'begun', 'json': library.to_str()})
    ids = ours.encode(MIXED).tolist()
    assert [library.token_to_id('<s>'), *ids] == library.encode(MIXED).ids
    assert ids == OURS['bpe'].encode(MIXED).tolist()


def test_a_text_that_is_no_tokenizer_json_is_one_line():
    with pytest.raises(UserError, match='tokenizer mine is not in the format of tok') as error:
        Tokenizer({'kind': 'json', 'name': 'mine', 'json': '{"model": 1}'})
    assert '\n' not in str(error.value)


def odd(changed):
    """A byte-level BPE whose bytes begin at id 7, with a gap after 100, a template that adds two
    ids, tokens that are added and special, or not; and ids in the file that the library corrects if
    `changed`."""
    library = tokenizers.Tokenizer.from_str(json.dumps(CONTENTS['byte level']))
    content = json.loads(library.to_str()) | {'normalizer': None, 'added_tokens': []}
    vocab = {token: i + 6 + 20 * (i > 100) for token, i in content['model']['vocab'].items()
             if not token.startswith('<|')}
    library = tokenizers.Tokenizer.from_str(json.dumps(
        content | {'model': content['model'] | {'vocab': vocab}}))
    library.add_special_tokens(['<s>', '</s>'])
    library.add_tokens(['<tool>', '   ', 'é', 'ß!'])
    ends = [(token, library.token_to_id(token)) for token in ('<s>', '</s>')]
    library.post_processor = processors.TemplateProcessing('<s> $A </s>', special_tokens=ends)
    content = json.loads(library.to_str())
    for token in content['added_tokens'] if changed else []:
        token['id'] += 500
    return library, Tokenizer({'kind': 'json', 'name': 'odd', 'json': json.dumps(content)})


ODD = {changed: odd(changed) for changed in (False, True)}


@pytest.mark.parametrize('changed', ODD)
@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(['the', ' ', '   ', 'é', '<tool>', '<s>', 'ß!', '世', 'Ġ', '\n'])))
def test_odd_files_give_the_ids_of_the_library_without_what_a_template_adds(changed, parts):
    library, ours = ODD[changed]
    text, begin, end = ''.join(parts), *map(library.token_to_id, ('<s>', '</s>'))
    library.encode_special_tokens = True
    ids, decode = ours.encode(text).tolist(), ours.stream()
    assert [begin, *ids, end] == library.encode(text).ids
    assert ours.decode(ids) == library.decode(ids, skip_special_tokens=False)
    assert ''.join(map(decode, ids)) == ours.decode(ids).rstrip('\ufffd')
    assert ours.text_lengths[ids].sum() == len(text.encode())


def test_an_odd_file_has_the_vocabulary_of_the_library():
    for library, ours in ODD.values():
        vocab = library.get_vocab()
        assert ours.vocab_size == max(vocab.values()) + 1 > len(vocab) and min(vocab.values()) == 7
        assert ours.token_bytes[0] == ours.token_bytes[115] == b''
        assert ours.special == {token: vocab[token] for token in ('<s>', '</s>')}
        assert ours.start == vocab['<s>'] and ours.text_lengths[ours.start] == 0
        assert ours.token_bytes[vocab['é']] == 'é'.encode()
        assert ours.decode([0, 115]) == library.decode([0, 115])


def test_the_bytes_that_an_unknown_token_stands_for_are_not_known():
    for name in ('unigram', 'bpe'):
        unknown = LIBRARIES[name].token_to_id('<unk>')
        assert np.isnan(OURS[name].text_lengths[unknown])
        assert np.isnan(OURS[name].text_lengths).sum() == 1
    assert not np.isnan(OURS['byte level'].text_lengths).any()


# --- the same, differently told ------------------------------------------------------------------

def test_dicts_that_give_the_same_ids_are_the_same_tokenizer():
    named = bpe_spec('other', read_ranks(SPEC), SPEC['pattern'], SPEC['special'])
    assert same_tokenizer(SPEC, SPEC) and same_tokenizer(SPEC, named)
    chars = {'kind': 'char', 'chars': 'abc'}
    assert not same_tokenizer(chars, {'kind': 'char', 'chars': 'acb'})
    assert not same_tokenizer(SPEC, {'kind': 'byte'})
    assert not same_tokenizer(SPEC, SPEC | {'special': {'<|endoftext|>': 260}})


def test_the_same_vocabulary_as_a_json_is_the_same_tokenizer():
    ours = OURS['byte level'].spec
    content = json.loads(ours['json'])
    ranks = {bytes(map(BYTES.get, text)): i for text, i in content['model']['vocab'].items()
             if not text.startswith('<|')}
    special = {token['content']: token['id'] for token in content['added_tokens']}
    spec = bpe_spec('plain', ranks, GPT2_PATTERN, special)
    assert same_tokenizer(spec, ours) and same_tokenizer(ours, spec)
    assert not same_tokenizer(ours, OURS['bpe'].spec)


def test_the_example_of_the_docstring_holds():
    import doctest
    assert doctest.testmod(module).failed == 0


def test_a_token_that_is_not_written_in_visible_bytes_has_the_bytes_of_its_text():
    step = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': True}
    model = {'type': 'BPE', 'vocab': {'世': 0, 'Ġ': 1}, 'merges': []}
    content = {'version': '1.0', 'model': model, 'pre_tokenizer': step, 'decoder': step}
    tokenizer = Tokenizer({'kind': 'json', 'name': 'x', 'json': json.dumps(content)})
    assert tokenizer.token_bytes == ['世'.encode(), b' ']
