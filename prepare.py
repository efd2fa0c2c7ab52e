"""Text into token files: data/NAME/train.bin, val.bin and meta.json; and those files read again.

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
import functools
import hashlib
import itertools
import json
import os
import re
import sys
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np

import folio.options
from folio import texts
from folio.cli import UserError, launched, locked, progress_bar, run, short
from folio.options import InPath
from folio.tokenizer import Tokenizer, code_points, name_of, tiktoken_spec, train_bpe

SPLITS = ('train', 'val')
NAME = r'\w[\w.-]*'  # of a data set
WHOLE_DOCUMENTS_FROM = 100  # documents, from which on each goes to one split as a whole
BPE_SAMPLE = 1 << 25  # characters that a vocabulary is learned from
BPE_WORDS = 3 << 19  # bytes of different words in them, for each takes some 60 bytes of memory
BPE_PIECE = 1 << 14  # characters learned from at once; each takes some 100 bytes of memory
UNKNOWN = '\ufffd'  # of a limited vocabulary of characters
LLMC_HEADER = [20240520, 1]  # llm.c's magic number and version


@dataclass
class PrepareConfig:
    """What to prepare."""
    input: list[InPath] = field(default_factory=list)  # files, folders, globs; - is standard input
    url: list[str] = field(default_factory=list)  # where to fetch the text, if there is no input
    sha256: list[str] = field(default_factory=list)  # the raw files' checksums, one for each URL
    file: str | None = None  # a single raw file's name in data/NAME/; None: the URL's end
    max_files: Annotated[int | None, '>= 1'] = None  # of the URLs only the first; None: all
    field: str = 'text'  # of JSON lines, and column of Parquet files
    tokenizer: str = 'char'  # char, byte, gpt2 or another of tiktoken's, bpe:N: learned
    max_vocab: Annotated[int | None, '>= 2'] = None  # char: rarer ones are one unknown; None: no
    val_fraction: Annotated[float, '> 0', '< 1'] = 0.1  # of the documents, or of the text
    workers: Annotated[int | None, '>= 1', '<= 1024'] = None  # threads; None: one for each core
    name: str | None = None  # the folder in data/; None: the recipe's name


def main(argv):
    """Prepare the data set that the recipes and options of the command line describe."""
    prepare(read_options(argv))


def read_options(argv):
    """The PrepareConfig of recipes and --key=value options, checked; UserError if it can't be."""
    options, _ = folio.options.parse(PrepareConfig, argv)
    recipes = [argument for argument in argv if not argument.startswith('-')]
    options.name = options.name or (Path(recipes[-1]).stem if recipes else None)
    if not options.name:
        raise UserError('name the data set, --name=NAME, or a recipe, data/NAME.py')
    if not re.fullmatch(NAME, options.name):
        raise UserError(f'--name={options.name}: a name has letters, digits, _, . and - only')
    if bool(options.input) == bool(options.url):
        raise UserError(f'{options.name}: give either input or url (--input=FILE or --url=URL)')
    if options.sha256 and len(options.sha256) != len(options.url):
        raise UserError(f'{len(options.sha256)} sha256 for {len(options.url)} URLs')
    return options


def prepare(options):
    """Make data/NAME/ of a PrepareConfig; whatever was there stays until all of it is written.
    UserError for what can't be read, encoded or written."""
    folder, began = folio.options.ROOT / 'data' / options.name, time.perf_counter()
    foreign = [path for path in folder.glob('*.bin') if path.stem not in SPLITS]
    if foreign:
        raise UserError(f'{foreign[0]} is not from prepare.py; choose another name')
    spec = known_spec(options.tokenizer)  # first of all, since it may be mistyped
    with locked(folder), cleaned(folder):
        source = Source(raw_files(options, folder), options)
        parts = source.parts()  # before a vocabulary is learned: the text may be too short
        tokenizer = Tokenizer(spec or source.spec())
        counts = write_tokens(source, parts, tokenizer, folder)
        meta = describe_tokens(source, tokenizer, counts, began)
        (folder / 'meta.json.tmp').write_text(json.dumps(meta), encoding='utf-8')
        publish(folder)
    report(folder, meta, counts, tokenizer)


def known_spec(name):
    """The dict of the tokenizer of this name, or None for one that is made for its text."""
    size = re.fullmatch(r'bpe:(\d{1,9})', name)
    if size and not 257 <= int(size[1]) <= 1 << 24:
        raise UserError(f'{name}: the 256 bytes and <|endoftext|> take 257 ids, the least there is')
    if size or name == 'char':
        return None
    return {'kind': 'byte'} if name == 'byte' else tiktoken_spec(name)


@contextlib.contextmanager
def cleaned(folder):
    """The folder, in which nothing unfinished stays behind; a failure to write is a UserError."""
    existed = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except OSError as error:
        raise UserError(f'{folder} could not be written: {error}') from None
    finally:
        for path in folder.glob('*.tmp'):
            path.unlink()
        if not existed and not any(folder.iterdir()):
            folder.rmdir()


def publish(folder):
    """Put the finished files in place; at no moment is a .bin beside another's meta.json."""
    names = ('meta.json', 'val.bin', 'train.bin')
    for name in names:
        with open(folder / f'{name}.tmp', 'ab') as file:
            os.fsync(file.fileno())
    for name in names[1:]:
        (folder / name).unlink(missing_ok=True)
    for name in names:
        os.replace(folder / f'{name}.tmp', folder / name)


# --- raw files -----------------------------------------------------------------------------------

def recipe_files(name):
    """The raw files of the recipe data/NAME.py, Paths, fetched first if they are not there."""
    options = read_options([str(folio.options.ROOT / 'data' / f'{name}.py')])
    return raw_files(options, folio.options.ROOT / 'data' / options.name)


def raw_files(options, folder):
    """The files to read, Paths; what a URL or standard input brings is put into the folder."""
    piped = folder / 'stdin.tmp'
    if '-' in options.input:
        import shutil  # which loads compressions
        with open(piped, 'wb') as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
    if options.input:
        return texts.input_files([piped if path == '-' else path for path in options.input])
    from folio.download import fetch_files  # which loads more than others need
    urls = options.url[:options.max_files]
    names = [options.file or url.rpartition('/')[2] for url in urls]
    if not all(re.fullmatch(r'[^/\0]+', name) and name not in ('.', '..') for name in names):
        raise UserError(f'{options.name}: a URL ends in no name of a file; give one, --file=NAME')
    if len(set(names)) < len(names):
        raise UserError(f'{options.name}: the URLs end in the same name')
    sums = options.sha256[:len(urls)] or [None] * len(urls)
    return fetch_files(urls, names, sums, folder)


# --- documents -----------------------------------------------------------------------------------

class Source:
    """The documents of the files: fewer than WHOLE_DOCUMENTS_FROM are held, in a list without exact
    copies, and more are read again for each pass."""

    def __init__(self, paths, options):
        self.paths, self.options = paths, options
        self.workers = options.workers or os.cpu_count()
        self.read_files = functools.partial(texts.documents, paths, options.field)
        first = list(itertools.islice(self.read_files(), WHOLE_DOCUMENTS_FROM))
        self.held = without_copies(first) if len(first) < WHOLE_DOCUMENTS_FROM else None
        self.documents_read = len(first)

    def documents(self):
        """The Documents, in order; documents_read counts those of the latest pass."""
        self.documents_read = 0
        for document in self.read_files() if self.held is None else self.held:
            self.documents_read += 1
            yield document

    def texts(self, what, cut=iter):
        """The texts of all documents, in pieces, with a bar that says what is done with them. cut:
        a function from a document's pieces to others."""
        with progress_bar(desc=f'{self.options.name}: {what}', unit='char', unit_scale=True) as bar:
            for document in self.documents():
                for text in cut(document.pieces()):
                    yield text
                    bar.update(len(text))

    @functools.cached_property
    def character_counts(self):
        """How often each character is in the texts, an array (0x110000,) by code point."""
        counts = np.zeros(sys.maxunicode + 1, np.int64)
        groups = map(''.join, texts.group_pieces(self.texts('counting')))
        for found in in_order(self.workers, lambda text: np.bincount(code_points(text)), groups):
            counts[:len(found)] += found
        return counts

    def spec(self):
        """The dict of a tokenizer made for these texts: bpe:N, or characters."""
        kind, _, size = self.options.tokenizer.partition(':')
        return train_bpe(self.sample(), int(size)) if kind == 'bpe' else self.char_spec()

    def char_spec(self):
        """The dict of a tokenizer of the characters, or of the max_vocab commonest, which then have
        UNKNOWN among them."""
        counts, limit = self.character_counts.copy(), self.options.max_vocab
        if self.held is None or len(self.held) > 1:  # documents, which a newline has to separate
            counts[ord('\n')] = counts.max() + 1
        codes = np.flatnonzero(counts)
        if limit is None or len(codes) <= limit:
            return {'kind': 'char', 'chars': ''.join(map(chr, codes))}
        counts[ord(UNKNOWN)] = counts.max() + 1
        codes = np.sort(np.argsort(-counts, kind='stable')[:limit])
        return {'kind': 'char', 'chars': ''.join(map(chr, codes)), 'unknown': UNKNOWN}

    def sample(self):
        """Pieces of text, spread over the files: BPE_SAMPLE characters at most, and fewer of a text
        whose words hardly repeat."""
        size, taken, words, seen = sum(path.stat().st_size for path in self.paths), 0, 0, set()
        step = max(1, -(-size // BPE_SAMPLE))
        if step > 1:
            print(f'learning the vocabulary from {BPE_SAMPLE / 1e6:.0f} million characters of it')
        cut = functools.partial(texts.at_words, size=BPE_PIECE)
        for text in itertools.islice(self.texts('learning', cut), 0, None, step):
            if taken >= BPE_SAMPLE:
                return
            if words >= BPE_WORDS:
                print(f'its words hardly repeat: learning the vocabulary from {taken:,} characters')
                return
            yield text
            taken += len(text)
            words += bytes_of_new_words(text, seen)

    def parts(self):
        """(split, pieces of text) of each document; UserError for a text too short to split."""
        if self.held is None:
            return split_by_hash(self.documents(), self.options.val_fraction)
        characters = int(self.character_counts.sum())
        cut = int(characters * (1 - self.options.val_fraction))
        if not 0 < cut < characters:
            raise UserError(f'{self.options.name}: {characters} characters are too few to split')
        return split_by_position(self.documents(), cut)


def without_copies(held):
    """The documents without exact copies of earlier ones, which might end up in the other split."""
    if len(held) < 2:
        return held
    unique = {}
    for document in held:
        unique.setdefault(document.digest(), document)
    if len(unique) < len(held):
        print(f'exact copies of others, left out: {len(held) - len(unique)}')
    return list(unique.values())


def split_by_hash(documents, val_fraction):
    """(split, pieces of text) of each document, which goes whole to the split its hash names."""
    share = int(val_fraction * 2 ** 64)
    for document in documents:
        yield 'val' if document.digest() < share else 'train', document.pieces()


def split_by_position(documents, cut):
    """(split, pieces of text) of each document, the first `cut` characters of all for training; the
    document across the cut comes in two parts, each to be read before the next is taken."""
    halves = itertools.groupby(halve(documents, cut), key=lambda half: half[:2])
    for (_, split), group in halves:
        yield split, (text for *_, text in group)


def halve(documents, cut):
    """(number of the document, split, text) for both sides of character `cut` in each piece."""
    for number, document in enumerate(documents):
        for text in document.pieces():
            if text[:cut]:
                yield number, 'train', text[:cut]
            if text[cut:]:
                yield number, 'val', text[cut:]
            cut = max(cut - len(text), 0)


def bytes_of_new_words(text, seen):
    """How many bytes the words of a text take that are not in the set `seen`, each counted once;
    they are put into the set, unless it is large already."""
    new = set(re.findall(r'\w+|[^\w\s]+', text)) - seen
    if len(seen) < 1 << 17:
        seen |= new
    return len(''.join(new).encode())


# --- token files, written ------------------------------------------------------------------------

def write_tokens(source, parts, tokenizer, folder):
    """Write train.bin.tmp and val.bin.tmp, the ids of the parts, (split, pieces of text); returns a
    Counter of the ids of each split and of the characters, bytes and unknown ids in them."""
    counts, bpe = Counter(), tokenizer.kind == 'bpe'
    if bpe:
        parts = ((split, texts.at_words(pieces)) for split, pieces in parts)
    passages = texts.separated(parts, always=bpe)
    groups = texts.group_pieces(passages, length=lambda passage: len(passage[1]))
    encode = functools.partial(encode_group, tokenizer)
    bar = progress_bar(desc=f'{source.options.name}: encoding', unit='B', unit_scale=True,
                       total=texts.plain_size(source.paths))
    with bar, open(folder / 'train.bin.tmp', 'wb') as train, \
            open(folder / 'val.bin.tmp', 'wb') as val:
        for ids, found in in_order(source.workers, encode, groups):
            train.write(ids['train'])
            val.write(ids['val'])
            counts.update(found)
            bar.update(found['bytes'])
    return counts


def dtype_of(tokenizer):
    """The numpy dtype of the ids in token files."""
    return np.dtype('<u2' if tokenizer.vocab_size <= 1 << 16 else '<u4')


def encode_group(tokenizer, group):
    """({split: its ids as bytes}, a Counter of ids, characters, bytes and unknown ids) of a list of
    (split, text)."""
    made, counts, dtype = {split: bytearray() for split in SPLITS}, Counter(), dtype_of(tokenizer)
    for split, text in group:
        ids = [tokenizer.start] if text == texts.SEPARATOR else tokenizer.encode(text)
        made[split] += np.asarray(ids, dtype).tobytes()
        counts.update({split: len(ids), 'characters': len(text), 'bytes': len(text.encode())})
    if tokenizer.unknown is not None:
        counts['unknown'] = sum(np.count_nonzero(np.frombuffer(ids, dtype) == tokenizer.unknown)
                                for ids in made.values())
    return made, counts


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


def describe_tokens(source, tokenizer, counts, began):
    """What meta.json says, a dict; UserError if a split has no tokens."""
    tokens = {split: counts[split] for split in SPLITS}
    if not all(tokens.values()):
        raise UserError(f'{source.options.name}: {source.documents_read} documents leave a split '
                        'empty; a larger val_fraction may help')
    return {'tokenizer': tokenizer.spec, 'vocab_size': tokenizer.vocab_size,
            'dtype': dtype_of(tokenizer).name, 'tokens': tokens,
            'documents': source.documents_read,
            'characters': counts['characters'], 'bytes': counts['bytes'],
            'bytes_per_token': round(counts['bytes'] / sum(tokens.values()), 4),
            'seconds': round(time.perf_counter() - began, 1),
            'recipe': describe_recipe(source.options)}


def describe_recipe(options):
    """The options, a dict in which paths below the scripts' folder are relative to it, so that it
    may move."""
    root = f'{folio.options.ROOT}{os.sep}'
    return vars(options) | {'input': [path.removeprefix(root) for path in options.input]}


def report(folder, meta, counts, tokenizer):
    """Print the numbers, and for byte-pair encodings what the tokens look like."""
    tokens = meta['tokens']
    print(f'{short(folder)}: documents {meta["documents"]:,}, characters '
          f'{meta["characters"]:,}, bytes {meta["bytes"]:,}; {name_of(tokenizer.spec)}, '
          f'{meta["vocab_size"]:,} ids; {tokens["train"]:,} tokens for training and '
          f'{tokens["val"]:,} for validation, {meta["bytes_per_token"]:.2f} bytes each; '
          f'{meta["seconds"]} s')
    if counts['unknown']:
        print(f'{counts["unknown"]:,} characters ({counts["unknown"] / meta["characters"]:.3%}) '
              f'are not in the vocabulary and became {UNKNOWN}')
    if tokenizer.kind == 'bpe':
        ids = np.fromfile(folder / 'train.bin', dtype_of(tokenizer), 24).tolist()
        shorter = [token for token in tokenizer.token_bytes if len(token) < 12]
        longest = [token.decode(errors='replace') for token in sorted(shorter, key=len)[-8:]]
        print('the text:   ', '|'.join(tokenizer.decode([i]) for i in ids).replace('\n', '\\n'))
        print('its tokens: ', *ids)
        print('long ones:  ', '|'.join(longest).replace('\n', '\\n'))


# --- token files, read ---------------------------------------------------------------------------

class Tokens:
    """A split: `len` token ids, of one file or of several after another, read where needed.

    Files are bare little-endian ids, or have the header of 1 KiB that llm.c writes: 256 int32, the
    first three LLMC_HEADER and the number of ids, which are uint16. UserError for a file that is
    cut, or if there are not `count` ids in all.
    """

    def __init__(self, paths, dtype, vocab_size, count=None):
        self.paths, self.vocab_size = paths, vocab_size
        self.shards = [open_shard(path, np.dtype(dtype)) for path in paths]
        self.ends = np.cumsum([count for *_, count in self.shards])
        if count not in (None, len(self)):
            raise UserError(f'{paths[0]} is half made: it has {len(self):,} tokens, meta.json says '
                            f'{count:,}; run prepare.py again')

    def __len__(self):
        return int(self.ends[-1])

    def read(self, start, length):
        """The ids from start on, (length,), as they are on disk."""
        number = self.shard_of(start)
        file, dtype, offset, count = self.shards[number]
        skipped = start - (self.ends[number] - count)  # of the shard's ids
        file.seek(offset + skipped * dtype.itemsize)
        ids = np.frombuffer(file.read(min(length, count - skipped) * dtype.itemsize), dtype)
        if len(ids) == length:
            return ids
        return np.concatenate([ids, self.read(start + len(ids), length - len(ids))])

    def fingerprint(self):
        """[number of tokens, a hash of 64 blocks spread over them], to know the split again."""
        starts = np.linspace(0, max(0, len(self) - 1024), 64).astype(int).tolist()
        blocks = [self.read(start, min(1024, len(self))).tobytes() for start in starts]
        return [len(self), hashlib.sha256(b''.join(blocks)).hexdigest()]

    def shard_of(self, place):
        """The number of the shard that has the token at this place."""
        return int(np.searchsorted(self.ends, place, 'right'))

    def windows(self, starts, length):
        """The windows of `length` tokens from each of starts on, an array (B, length) of int64;
        UserError for an id beyond the vocabulary, which one rank alone may find."""
        ids = np.stack([self.read(start, length) for start in starts]).astype(np.int64)
        if ids.max() >= self.vocab_size:
            row, column = np.argwhere(ids >= self.vocab_size)[0]
            place = starts[row] + column
            error = UserError(f'{self.paths[self.shard_of(place)]}: token {place:,} of the split '
                              f'is {ids[row, column]}, beyond the vocabulary of '
                              f'{self.vocab_size:,} ids')
            error.any_rank = True
            raise error
        return ids


def open_shard(path, dtype):
    """(file, dtype, offset, count): where the ids of a token file are; UserError if it is cut."""
    file, size = open(path, 'rb', buffering=0), path.stat().st_size
    head = np.frombuffer(file.read(12), '<i4').tolist() if size >= 12 else []
    if head[:2] == LLMC_HEADER:
        if head[2] < 0 or size != 1024 + 2 * head[2]:
            raise UserError(f'{path} is half made: it has {size:,} bytes, its header says '
                            f'{head[2]:,} tokens of 2')
        return file, np.dtype('<u2'), 1024, head[2]
    if size % dtype.itemsize:
        raise UserError(f'{path} has {size:,} bytes, no whole number of {dtype} tokens')
    return file, dtype, 0, size // dtype.itemsize


def open_corpus(name):
    """(train, val, meta) of data/NAME/, two Tokens and a dict, prepared first where only its recipe
    is there; UserError if it can't be, or is half made."""
    folder = folio.options.ROOT / 'data' / name
    recipes = {path.stem: path for path in (folio.options.ROOT / 'data').glob('*.py')}
    recipe = recipes.get(name)  # no other file is run, whatever a checkpoint calls its data
    if not list(folder.glob('*train*.bin')):
        prepare_missing(folder, recipe, known=', '.join(sorted(recipes)))
    meta = read_meta(folder, recipe)
    return *(open_split(folder, split, meta) for split in SPLITS), meta


def prepare_missing(folder, recipe, known):
    """Make the data set by its recipe; UserError where there is none, or several processes run."""
    if recipe is None:
        raise UserError(f'no data set or recipe is called {folder.name}; recipes: {known}; for a '
                        f'text of your own: python prepare.py --input=FILE --name={folder.name}')
    if launched():
        raise UserError(f'{folder} is not there yet; first run python prepare.py {recipe}')
    main([str(recipe)])


def read_meta(folder, recipe):
    """The content of meta.json, or what stands for it where the files are another program's."""
    if not (folder / 'meta.json').exists():
        return foreign_meta(folder)
    meta = load_meta(folder / 'meta.json')
    if recipe and describe_recipe(read_options([str(recipe)])) != meta.get('recipe'):
        print(f'warning: {folder} was made with other options than are in {recipe} now; '
              'prepare.py makes it anew')
    return meta


def load_meta(path):
    """The content of a meta.json, a dict; UserError for one that prepare.py did not write."""
    try:
        meta = json.loads(path.read_text(encoding='utf-8'))
        limit = {'uint16': 1 << 16, 'uint32': 1 << 24}[meta['dtype']]
        numbers = [meta['vocab_size'], *meta['tokens'].values()]
        sound = ({type(number) for number in numbers} == {int} and 1 <= numbers[0] <= limit
                 and isinstance(meta['tokenizer'], dict | None))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise UserError(f'{path} is damaged, or not from prepare.py; run that again')
    return meta


def foreign_meta(folder):
    """What stands for meta.json where there is none: GPT-2's vocabulary, if it can be had."""
    if (folder / 'meta.pkl').exists():
        raise UserError(f"{folder} has nanoGPT's meta.pkl, which is not read; prepare it again")
    print(f"{folder} has no meta.json: its tokens are taken as GPT-2's (50,257 ids)")
    meta = {'tokenizer': None, 'vocab_size': 50257, 'dtype': 'uint16', 'tokens': {}}
    try:
        meta['tokenizer'] = tiktoken_spec('gpt2')
    except UserError as error:
        print(f'no samples and no bits per byte: {error}')
    return meta


def open_split(folder, split, meta):
    """The Tokens of all files in the folder that have the split in their name, in sorted order."""
    paths = sorted(path for path in folder.glob(f'*{split}*.bin') if path.is_file())
    if not paths:
        raise UserError(f'{folder} has no {split}.bin; run prepare.py again')
    return Tokens(paths, np.dtype(meta['dtype']).newbyteorder('<'), meta['vocab_size'],
                  meta['tokens'].get(split))


if __name__ == '__main__':
    run(main)
