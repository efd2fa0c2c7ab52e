"""tokenizer.json, the format of Hugging Face's tokenizers, from and to the dicts of tokenizer.py.

    {'kind': 'char', ...}   a WordLevel model that sees each character by itself
    {'kind': 'byte'}        a BPE model without merges
    {'kind': 'bpe', ...}    a BPE model over bytes, which are written as GPT-2's visible characters
"""

import base64
import hashlib
import math
import re

from tiktoken_ext.openai_public import r50k_pat_str as GPT2_PATTERN

from script import UserError
from tokenizer import Tokenizer, bpe_spec, read_ranks

GPT2_SHA256 = 'ffafd8ef395cef34df347bedcd02c2ae5d9ba5fb025376184ae55036cd3f569c'
DIGITS_PATTERN = (  # GPT-2's, where each digit stands alone
    r"\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?[^\s\p{L}\p{N}]++|\s+(?![^\s\p{N}])|\s")
HIDDEN = [*range(33), *range(127, 161), 173]  # bytes that are written as other characters
BYTES = {chr(256 + HIDDEN.index(byte) if byte in HIDDEN else byte): byte for byte in range(256)}
CHARS = {byte: char for char, byte in BYTES.items()}
EACH_CHARACTER = r'[\s\S]'


# --- out -----------------------------------------------------------------------------------------

def to_json(spec):
    """The content of tokenizer.json for a tokenizer's dict."""
    special = spec.get('special', {})
    if spec['kind'] == 'char':
        ids = {char: i for i, char in enumerate(spec['chars'])}
        unknown = spec.get('unknown', '')  # '', in no vocabulary, makes any other an error
        model = {'type': 'WordLevel', 'vocab': ids, 'unk_token': unknown}
        before, decoder = split(EACH_CHARACTER), {'type': 'Fuse'}
    else:
        ranks = {token: i for i, token in enumerate(Tokenizer(spec).token_bytes)}
        before = decoder = byte_level()
        if spec['kind'] == 'bpe':
            ranks = read_ranks(spec)
            before = {'type': 'Sequence', 'pretokenizers': [split(plain(spec['pattern'])), before]}
        ids = {visible(token): i for token, i in ranks.items()} | special
        tokens = sorted(ranks, key=ranks.get)
        pairs = [pair for token in tokens for pair in pairs_of(token, ranks)[0]]
        model = {'type': 'BPE', 'dropout': None, 'unk_token': None, 'fuse_unk': False,
                 'continuing_subword_prefix': None, 'end_of_word_suffix': None,
                 'byte_fallback': False, 'ignore_merges': True, 'vocab': ids,
                 'merges': [f'{visible(one)} {visible(other)}' for one, other in pairs]}
    plainly = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized'), False)
    added = [{'id': i, 'content': text, **plainly, 'special': True} for text, i in special.items()]
    return {'version': '1.0', 'truncation': None, 'padding': None, 'added_tokens': added,
            'normalizer': None, 'pre_tokenizer': before, 'post_processor': None,
            'decoder': decoder, 'model': model}


def split(pattern):
    return {'type': 'Split', 'pattern': {'Regex': pattern}, 'behavior': 'Isolated', 'invert': False}


def byte_level():
    return {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True,
            'use_regex': False}


def plain(pattern):
    """A pattern for tokenizers' engine, to which {1,3}+ is not possessive but a repetition; at the
    end of an alternative, where patterns have it, {1,3} matches the same."""
    return re.sub(r'(\{[\d,]+\})\+', r'\1', pattern)


def visible(token):
    return ''.join(CHARS[byte] for byte in token)


def pairs_of(token, ranks):
    """(pairs, reached): the pairs whose merge makes a token: the one to which merging by rank
    comes, or, if that never makes this token out of its bytes, all there are."""
    parts = merge(token, ranks)
    if len(parts) <= 2:
        return [tuple(parts)][:len(parts) - 1], True
    pairs = [(token[:i], token[i:]) for i in range(1, len(token))]
    return [pair for pair in pairs if ranks.keys() >= set(pair)], False


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

def from_json(content, name, path):
    """The tokenizer's dict, called `name`, for the content of a tokenizer.json at `path`; UserError
    for one whose ids it would not give."""
    model, before = content['model'], steps(content.get('pre_tokenizer'), 'pretokenizers')
    chars = ''.join(sorted(model['vocab'], key=model['vocab'].get))
    if before == [split(EACH_CHARACTER)] and len(chars) == len(model['vocab']):
        unknown = model.get('unk_token')
        return {'kind': 'char', 'chars': chars} | ({'unknown': unknown} if unknown else {})
    special = {token['content']: token['id'] for token in content.get('added_tokens') or []}
    vocab = {text: i for text, i in model['vocab'].items() if text not in special}
    refusals = obstacles(content, model, before, vocab)
    if not refusals:
        ranks = {bytes(BYTES[char] for char in text): vocab[text]
                 for text in sorted(vocab, key=vocab.get)}
        if list(ranks) == [bytes([byte]) for byte in range(256)] and not special:
            return {'kind': 'byte'}
        refusals = unlike(model, ranks)
    for reason in refusals:
        raise UserError(f'{path}: {reason}; without this file the model comes without a tokenizer')
    text = '\n'.join(f'{base64.b64encode(token).decode()} {i}' for token, i in ranks.items())
    if hashlib.sha256(text.encode()).hexdigest() == GPT2_SHA256:
        name = 'gpt2'  # as tiktoken calls it
    return {'kind': 'bpe', 'name': name, 'pattern': pattern_of(before), 'ranks': text,
            'special': special}


def obstacles(content, model, before, vocab):
    """What makes a tokenizer.json something else than byte-level BPE: a list of reasons."""
    kind, names = model.get('type', 'BPE'), [step['type'] for step in before]
    if model.get('byte_fallback') or 'Metaspace' in names:
        return ['a SentencePiece tokenizer is not read, only byte-level BPE']
    if kind != 'BPE':
        return [f'a {kind} tokenizer is not read, only byte-level BPE']
    if changes := [step['type'] for step in steps(content.get('normalizer'), 'normalizers')]:
        return [f'its normalizer {changes[0]} changes texts, which byte-level BPE does not']
    if pattern_of(before) is None:
        return [f'its pre_tokenizer {" and ".join(names) or None} is not read']
    odd = [f'its {key} is not read' for key in
           ('continuing_subword_prefix', 'end_of_word_suffix') if model.get(key)]
    odd += [f'its token {text!r} is not written in bytes, as in byte-level BPE'
            for text in vocab if not BYTES.keys() >= set(text)]
    return odd if odd or vocab.keys() >= BYTES.keys() else ['it does not have all 256 bytes']


def steps(part, key):
    """A part of tokenizer.json as the list of what it does one after the other."""
    return part[key] if part and part['type'] == 'Sequence' else [part] if part else []


def pattern_of(before):
    """The regular expression that cuts texts as the pre-tokenizers do, or None."""
    *others, last = before or [{}]
    if last.get('type') != 'ByteLevel' or last.get('add_prefix_space'):
        return None
    if not others:
        return GPT2_PATTERN if last.get('use_regex', True) else EACH_CHARACTER + '+'
    first = others[0]
    if first == {'type': 'Digits', 'individual_digits': True} and last.get('use_regex', True):
        return DIGITS_PATTERN if len(others) == 1 else None
    keeps = (first.get('behavior'), first.get('invert')) in [('Isolated', False), ('Removed', True)]
    if first['type'] == 'Split' and keeps and len(others) == 1 and not last.get('use_regex', True):
        return first['pattern'].get('Regex')
    return None


def unlike(model, ranks):
    """What the listed merges and merging by rank (as tiktoken does) may treat differently: a list
    of one reason or none.

    They are the same if the list is in the order of the tokens it makes, and has the one pair to
    which merging by rank comes from a token's bytes: for two neighbours that make a token are what
    its bytes became by themselves, as if alone. Where there is no such pair the list has to have
    all, and a word that is a token has to be taken whole.
    """
    listed, last = {}, -1
    for pair in model['merges']:
        one, other = (bytes(BYTES[char] for char in text)
                      for text in (pair.split(' ') if isinstance(pair, str) else pair))
        if ranks.get(one + other, -1) < last:
            return [f'its merges make {visible(one + other)!r} out of the order of the ids']
        last = ranks[one + other]
        listed.setdefault(one + other, set()).add((one, other))
    for token in ranks:
        pairs, reached = pairs_of(token, ranks)
        if not (reached or model.get('ignore_merges')) or set(pairs) - listed.get(token, set()):
            return [f'its merges do not make {visible(token)!r} as merging by id does']
    return []


# --- learned -------------------------------------------------------------------------------------

def train_bpe(texts, vocab_size):
    """The dict of a byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909) learned from an
    iterable of str; it has vocab_size ids or fewer, if they give no more."""
    try:
        import tokenizers
    except ImportError:
        raise UserError('to learn a vocabulary: pip install tokenizers') from None
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.train_from_iterator(texts, tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size - 1, show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    ranks = {bytes(BYTES[char] for char in token): i for token, i in model.get_vocab().items()}
    return bpe_spec(f'bpe:{vocab_size}', ranks, GPT2_PATTERN, {'<|endoftext|>': len(ranks)})
