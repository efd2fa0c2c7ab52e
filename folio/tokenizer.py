"""Characters, bytes and byte-pair encodings: text to token ids and back.

A tokenizer is described by a plain dict, the same in meta.json and in checkpoints:

    {'kind': 'char', 'chars': ' !abc'}    one id a character ('unknown': '!' for all others)
    {'kind': 'byte'}                      the 256 bytes of UTF-8
    {'kind': 'bpe', 'name': 'gpt2', 'pattern': ..., 'ranks': ..., 'special': {'<|end...': 50256}}
    {'kind': 'json', 'name': 'llama', 'json': ...}

where ranks is the text of a .tiktoken file: a line for each token, its bytes in base64 and its id;
and json is the text of a tokenizer.json, which the library `tokenizers` runs.
So a checkpoint needs nothing but itself to be sampled. For example:

    >>> tokenizer = Tokenizer({'kind': 'char', 'chars': 'abc'})
    >>> tokenizer.encode('cab').tolist(), tokenizer.decode([2, 0, 1])
    ([2, 0, 1], 'cab')
"""

import base64
import codecs
import json
import re

import numpy as np

from folio.cli import UserError, first_line, import_library
from folio.texts import at_words, cut_up, readable

GPT2_PATTERN = (r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s")
HIDDEN = [*range(33), *range(127, 161), 173]  # bytes that GPT-2 writes as other characters
BYTES = {chr(256 + HIDDEN.index(byte) if byte in HIDDEN else byte): byte for byte in range(256)}
CHARS = {byte: char for char, byte in BYTES.items()}
LONG_WORD = 1000  # bytes
STARTS = (b'<|endoftext|>', b'<|begin_of_text|>', b'<bos>', b'<s>', b'\n')  # of a text


class Tokenizer:
    """encode and decode for the tokenizer that the dict `spec` describes.

    vocab_size: the number of ids. token_bytes: the UTF-8 bytes of each id, a list of bytes; b''
    for an id that no token has. special: the ids of tokens that stand for no text, by their names.
    text_lengths: the bytes of the text that each id stands for, an array of floats: 0 for a special
    token, NaN for an unknown character. start: the id a text without a prompt begins with.
    UserError for an unknown kind, or a library that is missing.
    """

    def __init__(self, spec):
        self.spec, self.kind = spec, spec['kind']
        self.special, self.unknown = spec.get('special', {}), None
        if self.kind == 'char':
            self.ids, self.token_bytes, self.unknown = char_tables(spec)
        elif self.kind == 'byte':
            self.token_bytes = [bytes([byte]) for byte in range(256)]
        elif self.kind == 'bpe':
            self.encoding, self.token_bytes = load_bpe(spec)
        elif self.kind == 'json':
            self.encoder, self.token_bytes, self.special, self.unknown = load_json(spec)
        else:
            raise UserError(f'unknown kind of tokenizer: {self.kind!r}')
        self.vocab_size = len(self.token_bytes)
        self.text_lengths = np.array([len(token) for token in self.token_bytes], float)
        self.text_lengths[[*self.special.values()]] = 0
        if self.unknown is not None:
            self.text_lengths[self.unknown] = np.nan
        starts = (self.token_bytes.index(token) for token in STARTS if token in self.token_bytes)
        self.start = next(starts, 0)

    def encode(self, text):
        """The ids of a text, a numpy array of integers (N,); special tokens in it are plain text.
        UserError for a character that the vocabulary lacks."""
        if self.kind == 'bpe':
            return encode_bpe(self.encoding, text)
        if self.kind == 'json':
            return encode_json(self.encoder, text)
        if self.kind == 'byte':
            return np.frombuffer(text.encode(), np.uint8)
        ids = self.ids.take(code_points(text), mode='clip')  # the last one is no character's
        if ids.min(initial=0) < 0:
            place = int(ids.argmin())
            raise UserError(f'the vocabulary has no character {text[place]!r} (at position '
                            f'{place}); leave it out, or prepare the data with --tokenizer=byte')
        return ids

    def decode(self, ids):
        """The text of ids; bytes that are no UTF-8 become U+FFFD."""
        if self.kind == 'json':
            return self.encoder.decode([int(i) for i in ids], skip_special_tokens=False)
        return b''.join(self.token_bytes[i] for i in ids).decode(errors='replace')

    def stream(self, past=()):
        """A function from one id after another to the text that is complete with it, maybe ''.
        past: the ids before them, such as a prompt's; SentencePiece drops the space before the
        first word of a text, but not of its continuation."""
        if self.kind != 'json':
            decoder = codecs.getincrementaldecoder('utf-8')('replace')
            return lambda i: decoder.decode(self.token_bytes[i])
        before, held = list(past), []  # ids whose text has been given, and those whose text has not

        def add(i):
            nonlocal before, held
            held.append(i)
            known, text = self.decode(before), self.decode(before + held)
            if text.endswith('\ufffd') or len(text) <= len(known):  # half of a character
                return ''
            before, held = held, []
            return text[len(known):]
        return add


# --- the dicts -----------------------------------------------------------------------------------

def name_of(spec):
    """What a person calls the tokenizer of this dict, or of None."""
    if spec and spec['kind'] == 'char':
        return f'{len(spec["chars"])} different characters'
    return spec.get('name', 'bytes') if spec else 'an unknown tokenizer'


def same_tokenizer(one, other):
    """Whether two dicts give the same id to the same bytes, for the whole vocabulary."""
    return one == other or Tokenizer(one).token_bytes == Tokenizer(other).token_bytes


def bpe_spec(name, ranks, pattern, special):
    """The dict of a byte-pair encoding; ranks: the bytes of each token and its id."""
    text = '\n'.join(f'{base64.b64encode(token).decode()} {rank}'
                     for token, rank in sorted(ranks.items(), key=lambda item: item[1]))
    return {'kind': 'bpe', 'name': name, 'pattern': pattern, 'ranks': text, 'special': special}


def read_ranks(spec):
    """The id of each token's bytes, in the dict of a byte-pair encoding."""
    lines = (line.split() for line in spec['ranks'].splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def tiktoken_spec(name):
    """The dict of tiktoken's encoding `name`, which it downloads once, or finds in its cache."""
    import tiktoken
    names = ['char', 'byte', *tiktoken.list_encoding_names()]
    if name not in names:
        raise UserError(f'no tokenizer {name!r}; there are {", ".join(names)}, bpe:N and the path '
                        'of a tokenizer.json')
    try:
        encoding = tiktoken.get_encoding(name)
    except Exception as error:  # whatever the network, the cache's folder or a cut file bring
        raise UserError(f'tiktoken could not get the vocabulary {name} ({type(error).__name__}): '
                        'connect once, or set TIKTOKEN_CACHE_DIR to a folder that has it; '
                        '--tokenizer=byte and --tokenizer=char need no download') from None
    return bpe_spec(name, encoding._mergeable_ranks, encoding._pat_str, encoding._special_tokens)


def json_spec(path):
    """The dict of the tokenizer.json at this path; UserError if it can't be read."""
    with readable(path) as file:
        spec = {'kind': 'json', 'name': path.resolve().parent.name, 'json': file.read().decode()}
    load_json(spec)  # which refuses what is not in the format
    return spec


def train_bpe(texts, vocab_size):
    """The dict of a byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909) learned from an
    iterable of str; it has vocab_size ids or fewer, if they give no more. Words longer than
    LONG_WORD are learned from in parts, for learning takes the square of their length."""
    tokenizers = import_library('tokenizers', 'to learn a vocabulary')
    model, before = tokenizers.Tokenizer(tokenizers.models.BPE()), tokenizers.pre_tokenizers
    model.pre_tokenizer = before.Sequence([
        before.ByteLevel(add_prefix_space=False), before.FixedLength(LONG_WORD)])
    model.train_from_iterator(texts, tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size - 1, show_progress=False,
        initial_alphabet=before.ByteLevel.alphabet()))
    ranks = {bytes(BYTES[char] for char in token): i for token, i in model.get_vocab().items()}
    return bpe_spec(f'bpe:{vocab_size}', ranks, GPT2_PATTERN, {'<|endoftext|>': len(ranks)})


# --- what a Tokenizer holds ----------------------------------------------------------------------

def code_points(text):
    """The code points of a text, a numpy array of integers (N,)."""
    encoding, dtype = ('ascii', 'u1') if text.isascii() else ('utf-32-le', '<u4')
    return np.frombuffer(text.encode(encoding), dtype)


def char_tables(spec):
    """(ids, token_bytes, unknown) for a Tokenizer; ids: of each code point, -1 for none, an array
    that ends with a code point above all."""
    codes = code_points(spec['chars'])
    unknown = spec['chars'].index(spec['unknown']) if 'unknown' in spec else None
    ids = np.full(codes.max(initial=0) + 2, -1 if unknown is None else unknown, np.int32)
    ids[codes] = np.arange(len(codes))
    return ids, [char.encode() for char in spec['chars']], unknown


def load_bpe(spec):
    """(encoding, token_bytes): tiktoken's encoder for the dict, and the bytes of each id."""
    import tiktoken
    ranks = read_ranks(spec)
    tokens = {rank: token for token, rank in ranks.items()}
    if len(tokens) < len(ranks) or not ranks.keys() >= {bytes([byte]) for byte in range(256)}:
        raise ValueError('an id has two tokens, or a byte none')  # tiktoken would panic
    tokens |= {rank: text.encode() for text, rank in spec['special'].items()}
    token_bytes = list_by_id(tokens)
    return tiktoken.Encoding(spec['name'], pat_str=spec['pattern'], mergeable_ranks=ranks,
                             special_tokens=spec['special']), token_bytes


def list_by_id(tokens):
    """The values of a dict in a list, b'' for ids that it lacks; ValueError if that is too long."""
    size = max(tokens, default=-1) + 1
    if size > 1 << 24:
        raise ValueError(f'an id is {size - 1}')
    return [tokens.get(i, b'') for i in range(size)]


def encode_bpe(encoding, text):
    """The ids that tiktoken's encoder gives for a text, which it takes in pieces: a million spaces
    in a row are more than its regular expressions have room for."""
    pieces = at_words(cut_up(text))
    ids = [encoding.encode_to_numpy(piece, disallowed_special=()) for piece in pieces]
    return np.concatenate([np.empty(0, np.uint32), *ids])


def encode_json(library, text):
    """The ids that a Tokenizer of `tokenizers` gives for a text."""
    try:
        return np.array(library.encode(text, add_special_tokens=False).ids, np.int64)
    except Exception as error:  # which is what the library raises, as for unknown characters
        raise UserError(f'the tokenizer has no ids for the text: {first_line(error)}') from None


def load_json(spec):
    """(library, token_bytes, special, unknown) for a Tokenizer, with the library's ids, from which
    those in a file may differ; UserError for a text that is no tokenizer.json."""
    tokenizers = import_library('tokenizers', f'the tokenizer {spec["name"]}')
    try:
        library = tokenizers.Tokenizer.from_str(spec['json'])
    except Exception as error:  # which is what the library raises
        raise UserError(f'the tokenizer {spec["name"]} is not in the format of tokenizers: '
                        f'{first_line(error)}') from None
    library.encode_special_tokens = True  # as ordinary text
    library.no_truncation()
    library.no_padding()
    content, added = json.loads(spec['json']), library.get_added_tokens_decoder()
    special = {token.content: i for i, token in added.items() if token.special}
    model = content['model']
    unknown = model.get('unk_id', library.get_vocab().get(model.get('unk_token')))
    return library, json_bytes(library, content, added), special, unknown


def json_bytes(library, content, added):
    """The bytes that each id adds to a text, for a tokenizer.json with this content and the tokens
    `added`, by their ids, which are found in a text before any others."""
    decoder = json.dumps(content.get('decoder'))

    def bytes_of(token, i):
        if i in added:
            return added[i].content.encode()
        if '"ByteLevel"' in decoder and BYTES.keys() >= set(token):
            return bytes(map(BYTES.get, token))
        if '"ByteFallback"' in decoder and re.fullmatch('<0x[0-9A-F]{2}>', token):
            return bytes.fromhex(token[3:5])
        # as a second word, for the first one of a text may lose its space
        once, twice = (library.decode([i] * n, skip_special_tokens=False) for n in (1, 2))
        return twice[len(once):].encode()
    return list_by_id({i: bytes_of(token, i) for token, i in library.get_vocab().items()})
