"""tokenizer.json, the format of Hugging Face's tokenizers, from and to the dicts of a Tokenizer;
and GPT-2's vocab.json and merges.txt, from which there may be no tokenizer.json yet.

    {'kind': 'char', ...}   a WordLevel model that sees each character by itself
    {'kind': 'byte'}        a BPE model without merges
    {'kind': 'bpe', ...}    a BPE model over bytes, which are written as GPT-2's visible characters
    {'kind': 'json', ...}   the file itself
"""

import hashlib
import json
import math
import re

from folio.cli import import_library
from folio.tokenizer import BYTES, CHARS, GPT2_PATTERN, bpe_spec, read_ranks

GPT2_SHA256 = 'a57a62dc1129bcacabd1fdaf6bba1ecdb18d0c62b8bf410d55f50ce76a9a278c'  # see is_gpt2
GPT2_SPECIAL = {'<|endoftext|>': 50256}
EACH_CHARACTER = r'[\s\S]'
BYTE_LEVEL = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True,
              'use_regex': False}  # the step between bytes and GPT-2's visible characters


# --- out -----------------------------------------------------------------------------------------

def to_json(spec):
    """The content of tokenizer.json for a tokenizer's dict."""
    if spec['kind'] == 'json':
        return json.loads(spec['json'])
    parts = char_parts(spec) if spec['kind'] == 'char' else byte_parts(spec)
    plainly = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized'), False)
    added = [{'id': i, 'content': text, **plainly, 'special': True}
             for text, i in spec.get('special', {}).items()]
    return {'version': '1.0', 'truncation': None, 'padding': None, 'added_tokens': added,
            'normalizer': None, 'post_processor': None, **parts}


def char_parts(spec):
    """The parts of tokenizer.json that make ids of single characters."""
    model = {'type': 'WordLevel', 'vocab': {char: i for i, char in enumerate(spec['chars'])},
             'unk_token': spec.get('unknown', '')}  # '', in no vocabulary, makes others an error
    return {'pre_tokenizer': split(EACH_CHARACTER), 'decoder': {'type': 'Fuse'}, 'model': model}


def byte_parts(spec):
    """The same for bytes, or a byte-pair encoding, whose merges are in the order of what they make
    and whose tokens are found whole before any merge."""
    learned = spec['kind'] == 'bpe'
    ranks = read_ranks(spec) if learned else {bytes([byte]): byte for byte in range(256)}
    ids = {visible(token): i for token, i in ranks.items()} | spec.get('special', {})
    merges = [f'{visible(one)} {visible(other)}' for token in sorted(ranks, key=ranks.get)
              for one, other in pairs_of(token, ranks)]
    nothing = dict.fromkeys(('dropout', 'unk_token', 'continuing_subword_prefix',
                             'end_of_word_suffix'))
    model = {'type': 'BPE', **nothing, 'fuse_unk': False, 'byte_fallback': False,
             'ignore_merges': True, 'vocab': ids, 'merges': merges}
    before = cut_by(spec['pattern']) if learned else BYTE_LEVEL
    return {'pre_tokenizer': before, 'decoder': BYTE_LEVEL, 'model': model}


def cut_by(pattern):
    """The steps that cut a text by a pattern, then write its bytes as visible characters."""
    return {'type': 'Sequence', 'pretokenizers': [split(pattern), BYTE_LEVEL]}


def split(pattern):
    """The step that cuts a text by a pattern. To their engine {1,3}+ is not possessive but a
    repetition; at the end of an alternative, where patterns have it, {1,3} matches the same."""
    regex = re.sub(r'(\{[\d,]+\})\+', r'\1', pattern)
    return {'type': 'Split', 'pattern': {'Regex': regex}, 'behavior': 'Isolated', 'invert': False}


def visible(token):
    """A token's bytes in GPT-2's visible characters."""
    return ''.join(CHARS[byte] for byte in token)


def pairs_of(token, ranks):
    """The pairs whose merge makes a token: the one to which merging by rank comes, or, if that
    never makes this token out of its bytes, all there are."""
    parts = merge(token, ranks)
    if len(parts) <= 2:
        return [tuple(parts)] if len(parts) == 2 else []
    pairs = [(token[:i], token[i:]) for i in range(1, len(token))]
    return [pair for pair in pairs if ranks.keys() >= set(pair)]


def merge(token, ranks):
    """The parts of a token's bytes once all merges of lower rank are done."""
    parts = [token[i:i + 1] for i in range(len(token))]
    while len(parts) > 1:
        rank, i = min((ranks.get(parts[i] + parts[i + 1], math.inf), i)
                      for i in range(len(parts) - 1))
        if rank >= ranks[token]:
            break
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return parts


# --- in ------------------------------------------------------------------------------------------

def from_merges(folder, name, settings):
    """The tokenizer's dict for a folder's vocab.json and merges.txt, of GPT-2's kind, and the dict
    in its tokenizer_config.json.

    Whatever exception `tokenizers` raises for files that are not in the format.
    """
    tokenizers = import_library('tokenizers', folder / 'vocab.json')
    files = [str(folder / file) for file in ('vocab.json', 'merges.txt')]
    library = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(*files))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=settings.get('add_prefix_space', False))
    library.decoder, known = tokenizers.decoders.ByteLevel(), library.get_vocab()
    library.add_special_tokens([token for token in GPT2_SPECIAL if token in known])
    return from_json(json.loads(library.to_str()), name)


def from_json(content, name):
    """The tokenizer's dict for the content of a tokenizer.json, a dict: of its plain kind if it is
    GPT-2's or one that to_json writes for characters or bytes, else a 'json' called `name`.

    KeyError, TypeError or AttributeError for what is not in the format.
    """
    model = content['model']
    if isinstance(model['vocab'], dict):  # a Unigram has a list
        chars = ''.join(sorted(model['vocab'], key=model['vocab'].get))
        unknown = model.get('unk_token')
        more = {'unknown': unknown} if unknown in model['vocab'] else {}
        for spec in ({'kind': 'char', 'chars': chars, **more}, {'kind': 'byte'}):
            if mean_the_same(to_json(spec), content):
                return spec
        if is_gpt2(content):
            return gpt2_spec(model['vocab'])
    return {'kind': 'json', 'name': name, 'json': json.dumps(content, ensure_ascii=False)}


def mean_the_same(one, other):
    """Whether two tokenizer.json have all in common that ids and texts depend on."""
    keys = ('added_tokens', 'normalizer', 'pre_tokenizer', 'post_processor', 'model', 'decoder')
    return all((one.get(key) or None) == (other.get(key) or None) for key in keys)


def is_gpt2(content):
    """Whether a tokenizer.json is GPT-2's, as on the hub or as to_json writes it, but for what a
    template adds to a text."""
    added = content.get('added_tokens') or []
    special = {token['content']: token['id'] for token in added if token.get('special')}
    model, before = content['model'], content.get('pre_tokenizer') or {}
    cuts = before == cut_by(GPT2_PATTERN) or (
        before.get('type') == 'ByteLevel' and before.get('use_regex', True)
        and not before['add_prefix_space'])
    changes = content.get('normalizer') or model.get('dropout')
    if len(added) > 1 or special != GPT2_SPECIAL or not cuts or changes:
        return False
    merges = [pair if isinstance(pair, str) else ' '.join(pair) for pair in model['merges']]
    tables = json.dumps([sorted(model['vocab'].items()), merges])
    return hashlib.sha256(tables.encode()).hexdigest() == GPT2_SHA256


def gpt2_spec(vocab):
    """tiktoken's dict of GPT-2, from its vocabulary in visible characters."""
    ranks = {bytes(map(BYTES.get, text)): i for text, i in vocab.items()
             if text not in GPT2_SPECIAL}
    return bpe_spec('gpt2', ranks, GPT2_PATTERN, GPT2_SPECIAL)
