"""Text into token files: data/NAME/train.bin, val.bin and meta.json; and those files read again.

    python prepare.py data/shakespeare_char.py
    python prepare.py --input=mybook.txt --tokenizer=char --name=mybook
    python prepare.py --input=notes/,articles.jsonl.gz --tokenizer=bpe:4096 --name=mine

A recipe, data/NAME.py, is Python whose assignments are the options below. The .bin files are bare
little-endian uint16 token ids (uint32 where the vocabulary exceeds 65,536).

A file of plain text is a document; so is each line of a .jsonl and each row of a .parquet file;
all may be compressed: .gz, .bz2, .xz, .zst. With 100 documents or more, val.bin has those whose
text has the lowest hashes, else the end of the whole text.
"""

import contextlib
import functools
import hashlib
import io
import itertools
import json
import os
import pickle
import re
import sys
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np

import folio.options
from folio import texts
from folio.cli import UserError, import_library, launched, locked, progress_bar, run, short
from folio.options import InPath, command
from folio.tokenizer import Tokenizer, code_points, json_spec, name_of, tiktoken_spec, train_bpe

SPLITS = ('train', 'val')
UNFINISHED = ('train.bin.tmp', 'val.bin.tmp', 'meta.json.tmp', 'stdin.tmp')
WHOLE_DOCUMENTS_FROM = 100  # documents, from which on each goes to one split as a whole
LARGE = 10_000  # documents, from which on validation's share of the text is left to chance
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
    crlf: bool = False  # keep the line ends \r\n of plain text, which else become \n
    tokenizer: str = 'char'  # char, byte, gpt2 or another of tiktoken's, bpe:N, FILE.json
    max_vocab: Annotated[int | None, '>= 2'] = None  # char: rarer ones are one unknown; None: no
    val_fraction: Annotated[float, '> 0', '< 1'] = 0.1  # of the documents, or of the text
    workers: Annotated[int | None, '>= 1', '<= 1024'] = None  # threads; None: one for each core
    name: str | None = None  # the folder in data/; None: the recipe's name


def main(argv):
    """Prepare the data set that the recipes and options of the command line describe."""
    options = read_options(argv)
    prepare(options)
    print('train it:', command('train.py', f'--dataset={options.name}'))


def read_options(argv):
    """The PrepareConfig of recipes and --key=value options, checked; UserError if it can't be."""
    options, _ = folio.options.parse(PrepareConfig, argv, folder='data')
    words = folio.options.words_of(PrepareConfig, argv)
    recipes = [word for option, word in words if option is None]
    options.name = options.name or (Path(recipes[-1]).stem if recipes else None)
    if not options.name:
        raise UserError('what to prepare? A recipe, data/NAME.py, or --input=FILE --name=NAME')
    if not re.fullmatch(r'\w[\w.-]*', options.name):
        raise UserError(f'--name={options.name}: a name has letters, digits, _, . and - only')
    if bool(options.input) == bool(options.url):
        raise UserError(f'{options.name}: give either input or url (--input=FILE or --url=URL)')
    if options.sha256 and len(options.sha256) != len(options.url):
        raise UserError(f'{len(options.sha256)} sha256 for {len(options.url)} URLs')
    return options


def prepare(options):
    """Make data/NAME/ of a PrepareConfig; whatever was there stays until all of it is written.
    UserError for what can't be read, encoded or written."""
    folder = folio.options.ROOT / 'data' / options.name
    foreign = [path for path in folder.glob('*.bin') if path.stem not in SPLITS]
    if foreign:
        raise UserError(f'{foreign[0]} is not from prepare.py; choose another name')
    spec = known_spec(options.tokenizer)  # first of all, since it may be mistyped
    with locked(folder), cleaned(folder):
        source = Source(raw_files(options, folder), options)
        passages = source.passages()  # before a vocabulary is learned: the text may be too short
        tokenizer = Tokenizer(spec or source.spec())
        counts = write_tokens(source, passages, tokenizer, folder)
        meta = describe_tokens(source, tokenizer, counts)
        (folder / 'meta.json.tmp').write_text(json.dumps(meta), encoding='utf-8')
        publish(folder)
    report(folder, meta, source)


def known_spec(name):
    """The dict of the tokenizer of this name, or None for one that is made for its text."""
    size = re.fullmatch(r'bpe:(\d{1,9})', name)
    if size and not 257 <= int(size[1]) <= 1 << 24:
        raise UserError(f'{name}: from 257 ids, for the bytes and <|endoftext|>, to 16,777,216')
    if size:
        import_library('tokenizers', 'to learn a vocabulary')  # before anything is fetched
    if size or name == 'char':
        return None
    if name.endswith('.json'):
        return json_spec(folio.options.find(name))
    return {'kind': 'byte'} if name == 'byte' else tiktoken_spec(name)


@contextlib.contextmanager
def cleaned(folder):
    """The folder, in which nothing unfinished stays behind; a failure to write is a UserError."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except OSError as error:
        raise UserError(f'{folder} could not be written: {error}') from None
    finally:
        for name in UNFINISHED:  # and no other file, which would be the user's
            (folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it is not empty
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
    if not options.input:
        return downloaded_files(options, folder)
    if '-' in options.input:
        keep_standard_input(folder / 'stdin.tmp')
    paths = texts.input_files(folder / 'stdin.tmp' if path == '-' else path
                              for path in options.input)
    return [path for path in paths if path.resolve() != folder.resolve() / 'meta.json']


def keep_standard_input(path):
    """Write standard input to a file, since a text is read more than once; UserError for JSON."""
    import shutil  # which loads compressions
    with open(path, 'wb') as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    with open(path, 'rb') as file:
        if re.match(rb'\s*\[?\s*\{\s*"', file.read(1 << 12)):
            raise UserError('the standard input is JSON: put it into a file that ends in .jsonl')


def downloaded_files(options, folder):
    """The raw files of the URLs, Paths; UserError where they can't all be had, or be told apart."""
    from folio.download import fetch_file  # which loads more than others need
    urls = options.url[:options.max_files]
    names = [options.file or re.split('[?#]', url)[0].rpartition('/')[2] for url in urls]
    if len({name for name in names if re.fullmatch(r'[^/]*[^/.]', name)}) < len(urls):
        raise UserError(f'{options.name}: each URL has to end in a file name of its own; '
                        '--file=NAME gives one to a single file')
    texts.check_libraries(names)  # before hours of fetching
    sums = options.sha256[:len(urls)] or [None] * len(urls)
    return list(map(fetch_file, urls, [folder / name for name in names], sums))


# --- documents -----------------------------------------------------------------------------------

class Source:
    """The documents of the files, which are read again for each pass."""

    def __init__(self, paths, options):
        self.paths, self.options = paths, options
        self.workers = options.workers or os.cpu_count()
        self.changes = {}  # what was changed in the texts, or left out, see texts.documents
        self.documents_read = 0
        first = sum(1 for _ in self.documents(WHOLE_DOCUMENTS_FROM))
        self.joined = first < WHOLE_DOCUMENTS_FROM  # to be cut as one text

    def documents(self, most=None):
        """The documents, or the first of them; documents_read counts those of the latest pass."""
        self.documents_read = 0
        for document in itertools.islice(texts.documents(
                self.paths, self.options.field, self.options.crlf, self.changes), most):
            self.documents_read += 1
            yield document

    @functools.cached_property
    def character_counts(self):
        """How often each character is in the texts, an array (0x110000,) by code point."""
        counts = np.zeros(sys.maxunicode + 1, np.int64)
        pieces = (text for document in self.documents() for text in document())
        groups = map(''.join, texts.group_pieces(pieces))
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
        counts, spec = self.character_counts.copy(), {'kind': 'char'}
        if self.documents_read > 1:  # which a newline has to separate
            counts[ord('\n')] = counts.max() + 1
        codes = np.flatnonzero(counts)
        if len(codes) > (self.options.max_vocab or len(counts)):
            counts[ord(UNKNOWN)] = counts.max() + 1
            codes = np.sort(np.argsort(-counts, kind='stable')[:self.options.max_vocab])
            spec['unknown'] = UNKNOWN
        return spec | {'chars': ''.join(map(chr, codes))}

    def sample(self):
        """Pieces of text, spread over the files: BPE_SAMPLE characters at most, and fewer of a text
        with very many different words."""
        taken, words, seen = 0, 0, set()
        step = -(-self.character_counts.sum() // BPE_SAMPLE)
        pieces = (text for document in self.documents()
                  for text in texts.at_words(document(), BPE_PIECE))
        for text in itertools.islice(pieces, 0, None, step):
            if taken >= BPE_SAMPLE or words >= BPE_WORDS:
                break
            yield text
            taken += len(text)
            new = set(re.findall(r'\w+|[^\w\s]+', text)) - seen
            seen |= new
            words += len(''.join(new).encode())

    def passages(self):
        """(number of the document, split, text) of each piece; UserError for a text too short to
        split."""
        fraction = self.options.val_fraction
        if not self.joined:
            fingerprints = list(map(texts.fingerprint, self.documents(LARGE)))
            return split_by_hash(self.documents(), validation_hashes(fingerprints, fraction))
        characters = int(self.character_counts.sum())
        cut = int(characters * (1 - fraction))
        if not 0 < cut < characters:
            raise UserError(f'{self.options.name}: {characters} characters are too few to split')
        return split_by_position(self.documents(), cut)


def validation_hashes(fingerprints, fraction):
    """Which hashes are those of documents for validation: a function from a hash to a bool. Of
    LARGE documents, the lowest of all hashes there are; of fewer, the lowest ones that bring
    validation nearer to its fraction of the text. Each split has one document at least."""
    if len(fingerprints) == LARGE:
        limit = int(fraction * 2 ** 64)
        return lambda digest: digest < limit
    lengths, taken, chosen = Counter(), 0, set()
    for digest, length in fingerprints:
        lengths[digest] += length
    wanted = fraction * sum(lengths.values())
    for digest in sorted(lengths)[:-1]:
        if lengths[digest] < 2 * (wanted - taken):
            chosen.add(digest)
            taken += lengths[digest]
    return (chosen or {min(lengths, key=lengths.get)}).__contains__


def split_by_hash(documents, is_validation):
    """The passages of the documents, each of which goes whole to the split its hash names."""
    for number, document in enumerate(documents):
        digest, _ = texts.fingerprint(document)
        split = 'val' if is_validation(digest) else 'train'
        for text in document():
            yield number, split, text


def split_by_position(documents, cut):
    """The passages of the documents, the first `cut` characters of all for training; the piece
    across the cut comes in two."""
    for number, document in enumerate(documents):
        for text in document():
            yield number, 'train', text[:cut]
            yield number, 'val', text[cut:]
            cut = max(cut - len(text), 0)


# --- token files, written ------------------------------------------------------------------------

def write_tokens(source, passages, tokenizer, folder):
    """Write train.bin.tmp and val.bin.tmp, the ids of the passages; returns a Counter of the ids of
    each split and of the characters and bytes in them."""
    counts, by_words = Counter(), tokenizer.kind in ('bpe', 'json')
    pieces = texts.separated(passages, by_words)
    groups = texts.group_pieces(pieces, length=lambda piece: len(piece[1]))
    encode = functools.partial(encode_group, tokenizer)
    bar = progress_bar(desc=f'{source.options.name}: encoding', unit='B', unit_scale=True)
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
    """({split: its ids as bytes}, a Counter of ids, characters and bytes) of a list of (split,
    text)."""
    made, counts, dtype = {split: bytearray() for split in SPLITS}, Counter(), dtype_of(tokenizer)
    for split, text in group:
        ids = [tokenizer.start] if text == texts.SEPARATOR else tokenizer.encode(text)
        made[split] += np.asarray(ids, dtype).tobytes()
        counts.update({split: len(ids), 'characters': len(text), 'bytes': len(text.encode())})
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


def described(options):
    """The options, a dict in which paths below the scripts' folder are relative to it, so that it
    may move."""
    root = f'{folio.options.ROOT}{os.sep}'
    return vars(options) | {'input': [str(path).removeprefix(root) for path in options.input]}


def describe_tokens(source, tokenizer, counts):
    """What meta.json says, a dict; UserError if a split has no tokens."""
    tokens = {split: counts[split] for split in SPLITS}
    if not all(tokens.values()):
        raise UserError(f'{source.options.name}: {source.documents_read} documents leave a split '
                        'empty; a larger val_fraction may help')
    return {'tokenizer': tokenizer.spec, 'vocab_size': tokenizer.vocab_size,
            'dtype': dtype_of(tokenizer).name, 'tokens': tokens,
            'documents': source.documents_read, 'characters': counts['characters'],
            'bytes': counts['bytes'], 'recipe': described(source.options)}


def report(folder, meta, source):
    """Print the numbers, and what was changed in the texts, or left out."""
    tokens = meta['tokens']
    print(f'{short(folder)}: documents {meta["documents"]:,}, characters {meta["characters"]:,}; '
          f'vocabulary: {name_of(meta["tokenizer"])}, {meta["vocab_size"]:,} ids; '
          f'{tokens["train"]:,} tokens for training and {tokens["val"]:,} for validation')
    for kind in (texts.CRLF, texts.EMPTY):
        times = sum(number for (_, what), number in source.changes.items() if what == kind)
        if times:
            print(f'{times:,} {kind}')


# --- token files, read ---------------------------------------------------------------------------

class Tokens:
    """A split: `len` token ids, of one file or of several after another, read where needed.
    UserError for a file that is cut, or if there are not `count` ids in all."""

    def __init__(self, paths, dtype, vocab_size, count=None):
        self.paths, self.vocab_size = paths, vocab_size
        self.open = functools.lru_cache(256)(  # systems allow 1,024 open files
            functools.partial(open, mode='rb', buffering=0))
        self.shards = [read_header(path, np.dtype(dtype)) for path in paths]
        self.ends = np.cumsum([count for *_, count in self.shards])
        if count not in (None, len(self)):
            raise UserError(f'{paths[0]} is half made: it has {len(self):,} tokens, meta.json says '
                            f'{count:,}; run prepare.py again')

    def __len__(self):
        return int(self.ends[-1])

    def read(self, start, length):
        """The ids from start on, (length,), as they are on disk."""
        number = int(np.searchsorted(self.ends, start, 'right'))
        dtype, offset, count = self.shards[number]
        file = self.open(self.paths[number])
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

    def windows(self, starts, length):
        """The windows of `length` tokens from each of starts on, an array (B, length) of int64;
        UserError for an id beyond the vocabulary, which one rank alone may find."""
        ids = np.stack([self.read(start, length) for start in starts]).astype(np.int64)
        if ids.max() >= self.vocab_size:
            error = UserError(f'{self.paths[0].parent} has the id {ids.max()}, beyond the '
                              f'{self.vocab_size:,} known ids')
            error.any_rank = True
            raise error
        return ids


def read_header(path, dtype):
    """(dtype, offset, count): where the ids of a token file are; UserError if it is cut. llm.c
    writes 256 int32, LLMC_HEADER and the number of ids first of all, before ids of uint16."""
    size, head = path.stat().st_size, np.fromfile(path, '<i4', 3).tolist()
    offset, count = 0, size // dtype.itemsize
    if size >= 1024 and head[:2] == LLMC_HEADER:
        dtype, offset, count = np.dtype('<u2'), 1024, head[2]
    if size != offset + count * dtype.itemsize:
        raise UserError(f'{path} is half made: it has {size:,} bytes, and {count:,} ids of '
                        f'{dtype.itemsize} bytes take {offset + count * dtype.itemsize:,}')
    return dtype, offset, count


def open_corpus(name, spec=None):
    """(train, val, meta) of data/NAME/, two Tokens and a dict, prepared first where only its recipe
    is there; UserError if it can't be, or is half made. spec: the tokenizer of the model that is to
    read it; what has another for sure is not prepared."""
    folder = folio.options.ROOT / 'data' / name
    recipes = {path.stem: path for path in (folio.options.ROOT / 'data').glob('*.py')}
    recipe = recipes.get(name)  # no other file is run, whatever a checkpoint calls its data
    if not any('train' in path.stem for path in folder.glob('*.bin')):
        prepare_missing(folder, recipe, ', '.join(sorted(recipes)), spec)
    meta = read_meta(folder)
    made_with = meta.get('recipe') or {}
    wanted = described(read_options([str(recipe)])) if recipe else made_with
    if wanted | made_with != wanted:
        print(f'warning: {short(folder)} was made with other options than are in the recipe now; '
              f'to make it anew: {command("prepare.py", short(recipe))}')
    return *(open_split(folder, split, meta) for split in SPLITS), meta


def prepare_missing(folder, recipe, known, spec):
    """Make the data set by its recipe; UserError where there is none, or several processes run."""
    if recipe is None:
        raise UserError(f'no data set or recipe is called {folder.name} ({short(folder)}); '
                        f'recipes: {known}; for a text of your own: '
                        f'{command("prepare.py", "--input=FILE", f"--name={folder.name}")}')
    if launched():
        raise UserError(f'{short(folder)} is not there yet; first run '
                        f'{command("prepare.py", short(recipe))}')
    options = read_options([str(recipe)])
    kind = options.tokenizer if options.tokenizer in ('char', 'byte') else 'bpe'
    if spec and spec.get('kind') in {'char', 'byte', 'bpe'} - {kind}:
        raise UserError(f'the tokens of {options.name} are of the kind {options.tokenizer}, those '
                        f'of the checkpoint of the kind {spec["kind"]}')
    prepare(options)


def read_meta(folder):
    """The content of meta.json, or what stands for it where there is none, a dict; UserError for
    one that prepare.py did not write."""
    path = folder / 'meta.json'
    if not path.exists():
        return foreign_meta(folder)
    try:
        meta = json.loads(path.read_text(encoding='utf-8'))
        limit = {'uint16': 1 << 16, 'uint32': 1 << 24}[meta['dtype']]
        numbers = [meta['vocab_size'], *meta['tokens'].values()]
        if not ({type(number) for number in numbers} == {int} and 1 <= numbers[0] <= limit
                and isinstance(meta['tokenizer'], dict | None)
                and isinstance(meta.get('recipe'), dict | None)):
            raise ValueError
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise UserError(f'{path} is damaged, or not from prepare.py; run that again') from None
    return meta


def foreign_meta(folder):
    """What stands for meta.json: nanoGPT's meta.pkl, or else GPT-2's vocabulary."""
    meta = {'tokenizer': None, 'vocab_size': 50257, 'dtype': 'uint16', 'tokens': {}}
    if (folder / 'meta.pkl').exists():
        spec = read_characters(folder / 'meta.pkl')
        return meta | {'tokenizer': spec, 'vocab_size': len(spec['chars'])}
    print(f"{folder} has no meta.json: its tokens are taken as GPT-2's (50,257 ids)")
    try:
        meta['tokenizer'] = tiktoken_spec('gpt2')
    except UserError as error:
        print(f'no samples and no bits per byte: {error}')
    return meta


class PlainUnpickler(pickle.Unpickler):
    """Reads texts, numbers and what holds them, but no function or class, which might run."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f'it names {module}.{name}')


def read_characters(path):
    """The tokenizer's dict of nanoGPT's meta.pkl; UserError for one that holds anything else."""
    try:
        meta = PlainUnpickler(io.BytesIO(path.read_bytes())).load()
        chars = ''.join(sorted(meta['stoi'], key=meta['stoi'].get))
        ids = {char: i for i, char in enumerate(chars)}
        if not chars.encode() or meta != {
                'vocab_size': len(chars), 'stoi': ids, 'itos': dict(enumerate(chars))}:
            raise ValueError
    except Exception:  # whatever a broken pickle raises
        raise UserError(f"{path} holds more or other things than nanoGPT's characters, and is not "
                        'read; prepare the data again with prepare.py') from None
    return {'kind': 'char', 'chars': chars}


def open_split(folder, split, meta):
    """The Tokens of the files that have the split's name as a word in theirs, in sorted order (so
    pretrain_val.bin is none of train's); UserError without one."""
    word = re.compile(rf'(?<![a-z]){split}(?![a-z])')
    paths = sorted(path for path in folder.glob('*.bin') if word.search(path.stem))
    if not paths:
        raise UserError(f'{folder} has no {split}.bin; run prepare.py again')
    return Tokens(paths, np.dtype(meta['dtype']).newbyteorder('<'), meta['vocab_size'],
                  meta['tokens'].get(split))


if __name__ == '__main__':
    run(main)
