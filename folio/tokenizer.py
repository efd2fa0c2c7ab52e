"""Characters, bytes and byte-pair encodings: text to token ids and back.

A tokenizer is described by a plain dict, the same in meta.json and in checkpoints:

    {'kind': 'char', 'chars': ' !abc'}    one id a character ('unknown': '!' for all others)
    {'kind': 'byte'}                      the 256 bytes of UTF-8
    {'kind': 'bpe', 'name': 'gpt2', 'pattern': ..., 'ranks': ..., 'special': {'<|end...': 50256}}

where ranks is the text of a .tiktoken file: a line for each token, its bytes in base64 and its id.
So a checkpoint needs nothing but itself to be sampled. For example:

    >>> tokenizer = Tokenizer({'kind': 'char', 'chars': 'abc'})
    >>> tokenizer.encode('cab').tolist(), tokenizer.decode([2, 0, 1])
    ([2, 0, 1], 'cab')
"""

import base64
import codecs

import numpy as np

from script import UserError


class Tokenizer:
    """encode and decode for the tokenizer that the dict `spec` describes.

    vocab_size: the number of ids. token_bytes: the UTF-8 bytes of each id (list of bytes).
    start: the id a text without a prompt begins with.
    """

    def __init__(self, spec):
        self.spec, self.kind = spec, spec['kind']
        if self.kind == 'char':
            codes = code_points(spec['chars'])
            unknown = spec['chars'].index(spec['unknown']) if 'unknown' in spec else -1
            self.ids = np.full(codes.max(initial=0) + 2, unknown, np.int32)  # by code point
            self.ids[codes] = np.arange(len(codes))
            self.token_bytes = [char.encode() for char in spec['chars']]
        elif self.kind == 'byte':
            self.token_bytes = [bytes([byte]) for byte in range(256)]
        elif self.kind == 'bpe':
            self.encoding, self.token_bytes = bpe(spec)
        else:
            raise UserError(f'unknown kind of tokenizer: {self.kind!r}')
        self.vocab_size = len(self.token_bytes)
        starts = [token for token in (b'<|endoftext|>', b'\n') if token in self.token_bytes]
        self.start = self.token_bytes.index(starts[0]) if starts else 0

    def encode(self, text):
        """The ids of a text, a numpy array of integers (N,); special tokens in it are plain text.

        Raises UserError for a character that a character vocabulary lacks.
        """
        if self.kind == 'bpe':
            return self.encoding.encode_to_numpy(text, disallowed_special=())
        if self.kind == 'byte':
            return np.frombuffer(text.encode(), np.uint8)
        ids = self.ids.take(code_points(text), mode='clip')  # the last one is no character's
        if ids.min(initial=0) < 0:
            at = int(ids.argmin())
            raise UserError(f'the vocabulary has no character {text[at]!r} (U+{ord(text[at]):04X}, '
                            f'at position {at} of the text)')
        return ids

    def decode(self, ids):
        """The text of ids; bytes that are no UTF-8 become U+FFFD."""
        return b''.join(self.token_bytes[i] for i in ids).decode(errors='replace')

    def stream(self):
        """A function from one id after another to the text that is complete with it, maybe ''."""
        decoder = codecs.getincrementaldecoder('utf-8')('replace')
        return lambda i: decoder.decode(self.token_bytes[i])


def code_points(text):
    """The code points of a text, a numpy array of integers (N,)."""
    encoding, dtype = ('ascii', 'u1') if text.isascii() else ('utf-32-le', '<u4')
    return np.frombuffer(text.encode(encoding), dtype)


def name_of(spec):
    """What a person calls the tokenizer of this dict, or of None."""
    if spec and spec['kind'] == 'char':
        return f'{len(spec["chars"])} characters'
    return spec.get('name', 'bytes') if spec else 'an unknown tokenizer'


def read_ranks(spec):
    """The id of each token's bytes, in the dict of byte-pair encodings."""
    lines = (line.split() for line in spec['ranks'].splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def bpe(spec):
    """(encoding, token_bytes): tiktoken's encoder for the dict, and the bytes of each id."""
    import tiktoken
    ranks = read_ranks(spec)
    encoding = tiktoken.Encoding(spec['name'], pat_str=spec['pattern'], mergeable_ranks=ranks,
                                 special_tokens=spec['special'])
    token_bytes = [b''] * encoding.n_vocab  # an id that no token has stays empty
    for token, rank in ranks.items():
        token_bytes[rank] = token
    for text, rank in spec['special'].items():
        token_bytes[rank] = text.encode()
    return encoding, token_bytes


def bpe_spec(name, ranks, pattern, special):
    """The dict of a byte-pair encoding; ranks: the bytes of each token and its id."""
    text = '\n'.join(f'{base64.b64encode(token).decode()} {rank}'
                     for token, rank in sorted(ranks.items(), key=lambda item: item[1]))
    return {'kind': 'bpe', 'name': name, 'pattern': pattern, 'ranks': text, 'special': special}


def tiktoken_spec(name):
    """The dict of tiktoken's encoding `name`, which it downloads once, or finds in its cache."""
    import tiktoken
    if name not in tiktoken.list_encoding_names():
        choices = ', '.join(['char', 'byte', *tiktoken.list_encoding_names()])
        raise UserError(f'no tokenizer {name!r}; there are {choices} and bpe:N, which is learned')
    try:
        encoding = tiktoken.get_encoding(name)
    except Exception as error:  # whatever the network, the cache's folder or a cut file bring
        raise UserError(
            f'tiktoken could not get the vocabulary of {name} ({type(error).__name__}); connect '
            'once, or set TIKTOKEN_CACHE_DIR to a folder that has it; --tokenizer=byte and '
            '--tokenizer=char need no download') from None
    ranks, special = encoding._mergeable_ranks, dict(encoding._special_tokens)
    return bpe_spec(name, ranks, encoding._pat_str, special)
