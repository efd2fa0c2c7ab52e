"""Text to ids and back."""

import base64
import json
import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st

from script import UserError
from tokenizer import Tokenizer, name_of, tiktoken_spec

BYTE = Tokenizer({'kind': 'byte'})
RANKS = '\n'.join([f'{base64.b64encode(bytes([i])).decode()} {i}' for i in range(256)]
                  + ['dGg= 256', 'dGhl 257', 'IHQ= 258'])  # th, the, and a space with t
SPEC = {'kind': 'bpe', 'name': 'small', 'pattern': r' ?\p{L}+|\s+|[^\s\p{L}]+', 'ranks': RANKS,
        'special': {'<|endoftext|>': 259}}


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


def test_an_unknown_character_is_shown_with_its_position():
    with pytest.raises(UserError, match=r"'é' \(U\+00E9, at position 2"):
        Tokenizer({'kind': 'char', 'chars': 'abc'}).encode('abéc')


@given(st.text(max_size=20))
def test_a_stream_gives_the_text_as_soon_as_it_is_complete(text):
    decode = BYTE.stream()
    assert ''.join(decode(i) for i in BYTE.encode(text).tolist()) == text


def test_a_tokenizer_survives_json():
    spec = json.loads(json.dumps(SPEC))
    assert Tokenizer(spec).encode('the the').tolist() == Tokenizer(SPEC).encode('the the').tolist()


def test_names_say_what_the_vocabulary_is():
    assert name_of(SPEC) == 'small' and name_of({'kind': 'byte'}) == 'bytes'
    assert name_of({'kind': 'char', 'chars': 'abc'}) == '3 characters'


def test_an_unknown_name_lists_the_choices():
    with pytest.raises(UserError, match='char, byte, gpt2'):
        tiktoken_spec('gpt5')


@pytest.mark.skipif('TIKTOKEN_CACHE_DIR' not in os.environ, reason='needs TIKTOKEN_CACHE_DIR')
def test_gpt2_agrees_with_tiktoken():
    import tiktoken
    text = (REPOSITORY / 'model.py').read_text(encoding='utf-8') + " it's 世界  \n\n x"
    tokenizer = Tokenizer(tiktoken_spec('gpt2'))
    assert tokenizer.encode(text).tolist() == tiktoken.get_encoding('gpt2').encode_ordinary(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text and tokenizer.start == 50256


def test_a_vocabulary_that_cannot_be_fetched_is_one_line(tmp_path):
    code = ('import script, tokenizer\n'
            'script.run(lambda argv: tokenizer.tiktoken_spec("gpt2"))')
    nowhere = {name: 'http://127.0.0.1:9' for name in ('HTTPS_PROXY', 'https_proxy')}
    result = subprocess.run(
        [sys.executable, '-c', code], cwd=REPOSITORY, capture_output=True, text=True,
        env={**os.environ, 'TIKTOKEN_CACHE_DIR': str(tmp_path), **nowhere})
    assert result.returncode == 1 and result.stderr.count('\n') == 1
    assert 'TIKTOKEN_CACHE_DIR' in result.stderr
