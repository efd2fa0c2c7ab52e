"""The text of a sample: where it ends, and what of it is shown when."""

import pytest

from folio.continuation import Continuation
from folio.tokenizer import Tokenizer


@pytest.mark.parametrize('stop', ['b', 'ab', 'aab', 'é', 'xyz'])
@pytest.mark.parametrize('text', ['', 'aab', 'aaaab', 'ééaabx', 'xyxyz', 'aa'])
def test_the_text_ends_before_the_stop_and_no_part_of_it_is_shown(text, stop):
    tokenizer = Tokenizer({'kind': 'byte'})
    continuation, shown = Continuation(tokenizer, [], stop), ''
    for token in tokenizer.encode(text).tolist():
        continuation.add(token)
        shown += continuation.take()
        assert text.split(stop)[0].startswith(shown)
        if continuation.ended:
            break
    assert shown + continuation.rest() == text.split(stop)[0]
    assert continuation.ended


def test_a_sample_ends_with_the_end_token_of_its_tokenizer():
    tokenizer = Tokenizer({'kind': 'byte'})
    tokenizer.special = {'<|endoftext|>': ord('c')}
    continuation = Continuation(tokenizer, [], 'ax')
    for token in b'aba':
        continuation.add(token)
    assert (continuation.take(), continuation.ended) == ('ab', False)
    continuation.add(ord('c'))
    assert continuation.ended and continuation.rest() == 'a'


def test_without_a_stop_each_character_is_shown_as_it_comes():
    tokenizer = Tokenizer({'kind': 'byte'})
    continuation = Continuation(tokenizer, [], None)
    parts = []
    for token in tokenizer.encode('aé').tolist():
        continuation.add(token)
        parts.append(continuation.take())
    assert parts == ['a', '', 'é']
