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

GPT2_SHA256 = '8a289cc4df65f7d46e9d68374e5125049bb7211b06c3b803ccebc68506d98fe4'  # see is_gpt2
GPT2_SPECIAL = {'<|endoftext|>': 50256}
CL100K = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}NUMBER"
          r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
EACH_CHARACTER = r'[\s\S]'
BYTE_LEVEL = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True,
              'use_regex': False}  # the step between bytes and GPT-2's visible characters
INCIDENTAL = {'version': '1.0', 'truncation': None, 'padding': None}  # which change no ids


# --- out -----------------------------------------------------------------------------------------

def to_json(spec):
    """The content of tokenizer.json for a tokenizer's dict."""
    if spec['kind'] == 'json':
        return json.loads(spec['json'])
    parts = char_parts(spec) if spec['kind'] == 'char' else byte_parts(spec)
    plainly = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized'), False)
    added = [{'id': i, 'content': text, **plainly, 'special': True}
             for text, i in spec.get('special', {}).items()]
    return {**INCIDENTAL, 'added_tokens': added, 'normalizer': None, 'post_processor': None,
            **parts}


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
    parts = (parts_of(token, ranks) for token in sorted(ranks, key=ranks.get))
    merges = [' '.join(map(visible, pair)) for pair in parts if len(pair) == 2]
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


def parts_of(token, ranks):
    """What all merges of lower rank leave of a token's bytes: the pair that makes it, or, of a byte
    or a token that merging by rank never makes, one part or more than two."""
    parts = [token[i:i + 1] for i in range(len(token))]
    while len(parts) > 1:
        rank, i = min((ranks.get(parts[i] + parts[i + 1], math.inf), i)
                      for i in range(len(parts) - 1))
        if rank >= ranks[token]:
            break
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return parts


# --- in ------------------------------------------------------------------------------------------

def from_merges(folder, name):
    """The tokenizer's dict for a folder's vocab.json and merges.txt, of GPT-2's kind; whatever
    exception `tokenizers` raises for files that are not in the format."""
    library = import_library('tokenizers', 'to read it').ByteLevelBPETokenizer.from_file(
        str(folder / 'vocab.json'), str(folder / 'merges.txt'))
    library.add_special_tokens([token for token in GPT2_SPECIAL if token in library.get_vocab()])
    return from_json(json.loads(library.to_str()), name)


def from_json(content, name):
    """The tokenizer's dict for the content of a tokenizer.json, a dict: of its plain kind if it is
    GPT-2's or one that to_json writes for characters or bytes, else a 'json' called `name`.

    KeyError, TypeError or AttributeError for what is not in the format.
    """
    model = content['model']
    if isinstance(model['vocab'], dict):  # a Unigram has a list
        for spec in (char_spec(model), {'kind': 'byte'}):
            if to_json(spec) == content | INCIDENTAL:
                return spec
        if is_gpt2(content):
            ranks = {bytes(map(BYTES.get, token)): i for token, i in model['vocab'].items()
                     if token not in GPT2_SPECIAL}
            return bpe_spec('gpt2', ranks, GPT2_PATTERN, GPT2_SPECIAL)
    return {'kind': 'json', 'name': name, 'json': json.dumps(content, ensure_ascii=False)}


def char_spec(model):
    """The dict of the characters in a model's vocabulary, if they are that."""
    chars, unknown = sorted(model['vocab'], key=model['vocab'].get), model.get('unk_token')
    spec = {'kind': 'char', 'chars': ''.join(chars)}
    return spec | {'unknown': unknown} if unknown in chars else spec


def is_gpt2(content):
    """Whether a tokenizer.json is GPT-2's, as on the hub or as to_json writes it, but for what a
    template adds to a text."""
    model = content['model']
    added = [[token['content'], token['id'], token['special']]
             for token in content.get('added_tokens') or ()]
    facts = json.dumps([sorted(model['vocab'].items()), merges_of(model), added,
                        content.get('normalizer'), model.get('dropout')])
    return (name_of_cut(content) == 'gpt-2'
            and hashlib.sha256(facts.encode()).hexdigest() == GPT2_SHA256)


def merges_of(model):
    """The merges of a model in a tokenizer.json; newer files have them as pairs, not as texts."""
    return [merge if isinstance(merge, str) else ' '.join(merge)
            for merge in model.get('merges', ())]


def name_of_cut(content):
    """llama.cpp's name of the way in which a tokenizer.json cuts a text, or None."""
    known = [({'type': 'ByteLevel', 'add_prefix_space': False}, 'gpt-2'),
             (cut_by(GPT2_PATTERN), 'gpt-2'),
             (cut_by(CL100K.replace('NUMBER', '{1,3}')), 'llama-bpe'),
             (cut_by(CL100K.replace('NUMBER', '')), 'qwen2')]
    steps = steps_of(content.get('pre_tokenizer') or {})
    return next((name for before, name in known if steps_of(before) == steps), None)


def steps_of(before):
    """The steps in which a pre-tokenizer cuts a text, without what changes no ids."""
    return [{'use_regex': True} | step | {'trim_offsets': None}
            for step in before.get('pretokenizers', [before])]
