"""Text into token files: data/NAME/train.bin, val.bin and meta.json.

    python prepare.py data/shakespeare_char.py
    python prepare.py --input=mybook.txt --tokenizer=char --name=mybook
    python prepare.py --input=notes/,articles.jsonl.gz --tokenizer=bpe:4096 --name=mine

A recipe, data/NAME.py, is Python whose assignments are the options below. The .bin files are bare
little-endian uint16 token ids (uint32 where the vocabulary exceeds 65,536).

A file of plain text is a document; so is each line of a .jsonl and each row of a .parquet file;
all may be compressed: .gz, .bz2, .xz, .zst. With 100 documents or more, val.bin has those that a
hash of their text chooses, else the end of the whole text.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import re
import shutil
import sys
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import config
import download
import script
import texts
from script import UserError, progress_bar
from texts import at_words, documents, grouped, input_files, separated
from tokenizer import Tokenizer, code_points, name_of, tiktoken_spec

MANY = 100  # documents, from which on each goes to one split as a whole
BPE_SAMPLE = 1 << 25  # characters that a vocabulary is learned from
UNKNOWN = '\ufffd'  # of a limited vocabulary of characters


@dataclass
class PrepareConfig:
    """What to prepare."""
    input: list[str] = field(default_factory=list)  # files, folders, globs; - is standard input
    url: list[str] = field(default_factory=list)  # where to fetch the text, if there is no input
    sha256: list[str] = field(default_factory=list)  # the raw files' checksums, one for each URL
    file: str | None = None  # a single raw file's name in data/NAME/; None: the URL's end
    max_files: int | None = None  # of the URLs only the first so many; None: all
    field: str = 'text'  # of JSON lines, and column of Parquet files
    tokenizer: str = 'char'  # char, byte, gpt2 or another of tiktoken's, bpe:N: learned
    max_vocab: int | None = None  # char: rarer ones become one unknown; None: all are kept
    val_fraction: float = 0.1  # of the documents, or the end of the text, becomes val.bin
    workers: int | None = None  # threads that encode; None: one for each core
    name: str | None = None  # the folder in data/; None: the recipe's name


def main(argv):
    prepare(read_options(argv))


def read_options(argv):
    """The PrepareConfig of recipes and --key=value options, checked."""
    options, _ = config.parse(PrepareConfig, argv)
    recipes = [argument for argument in argv if not argument.startswith('-')]
    options.name = options.name or (Path(recipes[-1]).stem if recipes else None)
    if not options.name:
        raise UserError('name the data set, --name=NAME, or a recipe, data/NAME.py')
    if not re.fullmatch(r'\w[\w.-]*', options.name):
        raise UserError(f'--name={options.name}: a name has letters, digits, _, . and - only')
    if bool(options.input) == bool(options.url):
        raise UserError(f'{options.name}: give either input or url (--input=FILE or --url=URL)')
    if options.sha256 and len(options.sha256) != len(options.url):
        raise UserError(f'{len(options.sha256)} sha256 for {len(options.url)} URLs')
    if not 0 < options.val_fraction < 1:
        raise UserError(f'val_fraction must be between 0 and 1, not {options.val_fraction}')
    for name, least in (('max_files', 1), ('max_vocab', 2), ('workers', 1)):
        if (value := getattr(options, name)) is not None and value < least:
            raise UserError(f'{name} must be at least {least}, not {value}')
    return options


def prepare(options):
    """Make data/NAME/ of the options; whatever was there stays until all of it is written."""
    folder, began = config.ROOT / 'data' / options.name, time.perf_counter()
    foreign = [path for path in folder.glob('*.bin') if path.stem not in ('train', 'val')]
    if foreign:
        raise UserError(f'{foreign[0]} is not from prepare.py; choose another name')
    spec = known_spec(options.tokenizer)  # first of all, since it may be mistyped
    with cleaned(folder):
        paths = raw_files(options, folder)
        few = list(itertools.islice(documents(paths, options.field), MANY))
        if len(few) < MANY:
            few = without_copies(few)
        corpus = Corpus(paths, options, few)
        tokenizer = Tokenizer(spec or corpus.spec())
        dtype = '<u2' if tokenizer.vocab_size <= 1 << 16 else '<u4'
        counts = corpus.write(tokenizer, dtype, folder)
        tokens = {split: counts[split] for split in ('train', 'val')}
        if not all(tokens.values()):
            raise UserError(f'{options.name}: {counts["documents"]} documents leave a split empty; '
                            'a larger val_fraction may help')
        numbers = {name: counts[name] for name in ('documents', 'characters', 'bytes')}
        numbers['bytes_per_token'] = round(counts['bytes'] / sum(tokens.values()), 4)
        numbers['seconds'] = round(time.perf_counter() - began, 1)
        meta = {'tokenizer': tokenizer.spec, 'vocab_size': tokenizer.vocab_size,
                'dtype': np.dtype(dtype).name, 'tokens': tokens, **numbers,
                'recipe': dataclasses.asdict(options)}
        (folder / 'meta.json.tmp').write_text(json.dumps(meta), encoding='utf-8')
        publish(folder)
    report(folder, meta, counts, tokenizer)


def known_spec(name):
    """The dict of the tokenizer of this name, or None for one that is made for its text."""
    size = re.fullmatch(r'bpe:(\d+)', name)
    if size and not 257 <= int(size[1]) <= 1 << 24:
        raise UserError(f'{name}: the 256 bytes and <|endoftext|> take 257 ids, the least there is')
    if size or name == 'char':
        return None
    return {'kind': 'byte'} if name == 'byte' else tiktoken_spec(name)


@contextlib.contextmanager
def cleaned(folder):
    """The folder, in which nothing unfinished stays behind; a failure to write is a UserError."""
    there = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except OSError as error:
        raise UserError(f'{folder} could not be written: {error}') from None
    finally:
        for path in folder.glob('*.tmp'):
            path.unlink()
        if not there and not any(folder.iterdir()):
            folder.rmdir()


def raw_files(options, folder):
    """The files to read, fetched first where the options have a URL."""
    if options.url:
        urls = options.url[:options.max_files]
        names = [options.file or url.rpartition('/')[2] for url in urls]
        if len(set(names)) < len(names):
            raise UserError(f'{options.name}: the URLs end in the same name')
        sums = options.sha256[:len(urls)] or [None] * len(urls)
        return download.fetch(urls, names, sums, folder)
    paths = []
    for pattern in options.input:
        if pattern == '-':
            paths.append(folder / 'stdin.tmp')
            with open(paths[-1], 'wb') as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        else:
            paths += input_files([pattern])
    return paths


def without_copies(few):
    """The documents without exact copies of earlier ones, which might end up in the other split."""
    if len(few) < 2:
        return few
    unique = {}
    for document in few:
        unique.setdefault(document.digest(), document)
    if len(unique) < len(few):
        print(f'exact copies of others, left out: {len(few) - len(unique)}')
    return list(unique.values())


def publish(folder):
    """Put the finished files in place; at no moment is a .bin beside another's meta.json."""
    for name in ('train.bin', 'val.bin'):
        (folder / name).unlink(missing_ok=True)
    for name in ('meta.json', 'val.bin', 'train.bin'):
        os.replace(folder / f'{name}.tmp', folder / name)


def report(folder, meta, counts, tokenizer):
    """The numbers, and for byte-pair encodings what the tokens look like."""
    tokens = meta['tokens']
    print(f'{script.short(folder)}: documents {meta["documents"]:,}, characters '
          f'{meta["characters"]:,}, bytes {meta["bytes"]:,}; {name_of(tokenizer.spec)}, '
          f'{meta["vocab_size"]:,} ids; {tokens["train"]:,} tokens for training and '
          f'{tokens["val"]:,} for validation, {meta["bytes_per_token"]:.2f} bytes each; '
          f'{meta["seconds"]} s')
    if counts['unknown']:
        print(f'{counts["unknown"]:,} characters ({counts["unknown"] / meta["characters"]:.3%}) '
              f'are not in the vocabulary and became {UNKNOWN}')
    if tokenizer.kind == 'bpe':
        ids = np.fromfile(folder / 'train.bin', np.dtype(meta['dtype']).newbyteorder('<'), 24)
        long = sorted((token for token in tokenizer.token_bytes if len(token) < 12), key=len)[-8:]
        shown = [token.decode(errors='replace').replace('\n', '\\n') for token in long]
        print('the text:   ', '|'.join(tokenizer.decode([i]).replace('\n', '\\n') for i in ids))
        print('its tokens: ', ' '.join(map(str, ids.tolist())))
        print('long ones:  ', '|'.join(shown))


# --- the corpus ----------------------------------------------------------------------------------

class Corpus:
    """The documents of the files, `few` of them held or, from MANY on, read again for each pass."""

    def __init__(self, paths, options, few):
        self.paths, self.options, self.few = paths, options, few if len(few) < MANY else None
        self.workers = options.workers or os.cpu_count()
        self.several = len(few) > 1
        if self.few is not None or options.tokenizer == 'char':
            self.counts = np.zeros(0x110000, np.int64)  # of each character
            for some in in_order(self.workers, census, grouped(self.texts('counting'))):
                self.counts[:len(some)] += some
            self.characters = int(self.counts.sum())
            self.cut = int(self.characters * (1 - options.val_fraction))
            if self.few is not None and not 0 < self.cut < self.characters:
                raise UserError(f'{options.name}: {self.characters} characters are too few to '
                                'split')

    def documents(self):
        return documents(self.paths, self.options.field) if self.few is None else iter(self.few)

    def texts(self, what):
        """The texts of all documents, in pieces of a file or several short ones, with a bar."""
        with progress_bar(desc=f'{self.options.name}: {what}', unit='char', unit_scale=True) as bar:
            for text in itertools.chain.from_iterable(d.pieces() for d in self.documents()):
                yield text
                if bar is not None:
                    bar.update(len(text))

    def spec(self):
        """The dict of a tokenizer made for these texts: bpe:N, or characters."""
        kind, _, size = self.options.tokenizer.partition(':')
        if kind == 'bpe':
            from tokenizer_json import train_bpe  # which loads more than others need
            return train_bpe(self.sample(), int(size))
        counts, limit = self.counts.copy(), self.options.max_vocab
        if self.several:
            counts[ord('\n')] = counts.max() + 1  # between documents
        codes = np.flatnonzero(counts)
        if limit is None or len(codes) <= limit:
            return {'kind': 'char', 'chars': ''.join(map(chr, codes))}
        counts[ord(UNKNOWN)] = counts.max() + 1
        codes = np.sort(np.argsort(-counts, kind='stable')[:limit])
        return {'kind': 'char', 'chars': ''.join(map(chr, codes)), 'unknown': UNKNOWN}

    def sample(self):
        """Pieces of text, spread over the files, BPE_SAMPLE characters at most."""
        size, taken, every = sum(path.stat().st_size for path in self.paths), 0, 1
        if size > BPE_SAMPLE:
            every = -(-size // BPE_SAMPLE)
            print(f'learning the vocabulary from {BPE_SAMPLE / 1e6:.0f} million characters of it')
        for text in itertools.islice(self.texts('learning'), 0, None, every):
            if taken >= BPE_SAMPLE:
                return
            yield text
            taken += len(text)

    def splits(self, counts):
        """(split, whether a document begins, text) for all pieces of text, in order."""
        share, left = int(self.options.val_fraction * 2 ** 64), getattr(self, 'cut', 0)
        for document in self.documents():
            counts['documents'] += 1
            chosen = self.few is None and ('val' if document.digest() < share else 'train')
            begins = True
            for text in filter(None, document.pieces()):
                cut = max(left, 0) if not chosen else len(text) if chosen == 'train' else 0
                if text[:cut]:
                    yield 'train', begins, text[:cut]
                if text[cut:]:
                    yield 'val', begins, text[cut:]
                begins, left = False, left - len(text)

    def write(self, tokenizer, dtype, folder):
        """Write train.bin.tmp and val.bin.tmp; returns the counts of what went into them."""
        counts = Counter()
        encode = functools.partial(encode_batch, tokenizer=tokenizer, dtype=dtype)
        pieces = self.splits(counts)
        pieces = separated(at_words(pieces) if tokenizer.kind == 'bpe' else pieces,
                           always=tokenizer.kind == 'bpe')
        with contextlib.ExitStack() as stack:
            files = {split: stack.enter_context(open(folder / f'{split}.bin.tmp', 'wb'))
                     for split in ('train', 'val')}
            packed = {path.suffix for path in self.paths} & {'.jsonl', '.parquet', *texts.OPENERS}
            total = None if packed else sum(path.stat().st_size for path in self.paths)
            bar = stack.enter_context(progress_bar(
                total=total, desc=f'{self.options.name}: encoding', unit='B', unit_scale=True))
            for parts, some in in_order(self.workers, encode, batches(pieces)):
                for split, ids in parts:
                    ids.tofile(files[split])
                counts.update(some)
                if bar is not None:
                    bar.update(some['bytes'])
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
        return counts


def in_order(workers, work, items):
    """work(item) of each item, in their order, by threads; only a few items are held at a time."""
    with ThreadPoolExecutor(workers) as pool:
        running = deque()
        for item in items:
            running.append(pool.submit(work, item))
            if len(running) > 2 * workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def census(text):
    """How often each code point is in the text, an array as long as the highest asks for."""
    return np.bincount(code_points(text))


def batches(pieces):
    """Lists of successive pieces that are together about as long as one of a file."""
    batch, size = [], 0
    for split, text in pieces:
        batch.append((split, text))
        size += len(text or '')
        if size >= texts.PIECE:
            yield batch
            batch, size = [], 0
    yield batch


def encode_batch(batch, tokenizer, dtype):
    """([(split, its ids)], counts of tokens, characters, bytes) of a list of (split, text)."""
    ids, counts = {'train': [], 'val': []}, Counter()
    for split, text in batch:
        ids[split].append([tokenizer.start] if text is None else tokenizer.encode(text))
        counts[split] += len(ids[split][-1])
        counts['characters'] += len(text or '')
        counts['bytes'] += len((text or '').encode())
        if 'unknown' in tokenizer.spec:
            unknown = tokenizer.spec['chars'].index(tokenizer.spec['unknown'])
            counts['unknown'] += int(np.count_nonzero(ids[split][-1] == unknown))
    joined = [(split, np.concatenate(some).astype(dtype)) for split, some in ids.items() if some]
    return joined, counts


if __name__ == '__main__':
    script.run(main)
