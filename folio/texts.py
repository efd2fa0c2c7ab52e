"""Documents out of files: plain text, JSON lines and Parquet, compressed or not.

    for document in documents(input_files(['notes/', 'more.jsonl.gz']), 'text'):
        print(sum(len(text) for text in document.pieces()))

A file of plain text is a document, and so is each line of a .jsonl and each row of a .parquet file.
What is read is one piece of a text, one line or some rows at a time, never a file as a whole.
"""

import bz2
import codecs
import glob
import gzip
import hashlib
import json
import lzma
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import config
from script import UserError

PIECE = 1 << 20  # bytes of a text that are read at once


@dataclass
class Document:
    """A text in pieces, which can be read more than once."""
    pieces: Callable  # () -> an iterable of str

    def digest(self):
        """A number below 2^64 that depends on the text alone."""
        hashed = hashlib.blake2b(digest_size=8)
        for text in self.pieces():
            hashed.update(text.encode())
        return int.from_bytes(hashed.digest(), 'little')


def input_files(patterns):
    """The files that paths, folders (recursively) and globs name, each one's in sorted order; what
    is hidden in a folder is left out."""
    files = []
    for pattern in patterns:
        path = config.find(pattern)
        if path.is_dir():
            found = sorted(file for file in path.rglob('*') if not any(
                part.startswith('.') for part in file.relative_to(path).parts))
        else:
            names = glob.glob(os.path.expanduser(pattern), recursive=True)
            found = [path] if path.is_file() else sorted(map(Path, names))
        found = [file for file in found if file.is_file()]
        if not found:
            raise UserError(f'{pattern}: no such file, folder or glob')
        files += found
    return files


def documents(paths, field):
    """The Documents of the files, in order; UserError for one that can't be read."""
    for path in paths:
        kind = Path(path.stem if path.suffix in OPENERS else path.name).suffix
        if kind == '.jsonl':
            texts = read_jsonl(path, field)
        elif kind == '.parquet':
            texts = read_parquet(path, field)
        else:
            yield Document(lambda path=path: read_text(path))
            continue
        for text in texts:
            yield Document(lambda text=text: [text])


# --- formats -------------------------------------------------------------------------------------

def open_zstd(path, mode):
    try:
        import zstandard
    except ImportError:
        raise UserError(f'{path}: pip install zstandard') from None
    return zstandard.open(path, mode)


OPENERS = {'.gz': gzip.open, '.bz2': bz2.open, '.xz': lzma.open, '.zst': open_zstd}


def read_blocks(path, lines=False):
    """The file's bytes, decompressed, in blocks or in lines; UserError where it is broken."""
    try:
        with OPENERS.get(path.suffix, open)(path, 'rb') as file:
            yield from file if lines else iter(lambda: file.read(PIECE), b'')
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror or error}') from None
    except Exception as error:  # each format's own
        if not isinstance(error, (EOFError, zlib.error, lzma.LZMAError)) \
                and type(error).__name__ != 'ZstdError':
            raise
        raise UserError(f'{path} cannot be read: {error}') from None


def read_text(path):
    """The text of a UTF-8 file in pieces; newlines stay as they are."""
    decoder, start, read = codecs.getincrementaldecoder('utf-8')(), 0, 0
    try:
        for block in read_blocks(path):
            yield decoder.decode(block)
            read += len(block)
            start = read - len(decoder.getstate()[0])  # of what is not decoded yet
        decoder.decode(b'', final=True)
    except UnicodeDecodeError as error:
        at = start + error.start
        raise UserError(f'{path} is not UTF-8 text: byte {at:,} is broken') from None


def read_jsonl(path, field):
    """The texts in `field` of the JSON objects, one a line."""
    for number, line in enumerate(read_blocks(path, lines=True), 1):
        try:
            record = json.loads(line) if line.strip() else None
        except ValueError as error:
            raise UserError(f'{path}, line {number}: {error}') from None
        if record is not None:
            text = record.get(field) if isinstance(record, dict) else None
            if not isinstance(text, str):
                names = ', '.join(record) if isinstance(record, dict) else 'no object'
                raise UserError(f'{path}, line {number}: no text is called {field} (--field=NAME); '
                                f'there are: {names}')
            yield whole_characters(text)


def read_parquet(path, field):
    """The texts in the column `field`; rows without one are left out."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f'{path}: pip install pyarrow') from None
    with tempfile.TemporaryFile() as plain:
        if path.suffix in OPENERS:  # Parquet is read from its end
            with OPENERS[path.suffix](path, 'rb') as file:
                shutil.copyfileobj(file, plain)
        try:
            table = pyarrow.parquet.ParquetFile(plain if path.suffix in OPENERS else path)
            if field not in table.schema_arrow.names:
                raise UserError(f'{path}: no column is called {field} (--field=NAME); there are: '
                                f'{", ".join(table.schema_arrow.names)}')
            for batch in table.iter_batches(256, columns=[field]):
                yield from map(whole_characters, filter(None, batch.column(0).to_pylist()))
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f'{path} cannot be read: {error}') from None


def whole_characters(text):
    """The text, with U+FFFD for half a surrogate pair, which JSON may hold and UTF-8 can't."""
    try:
        text.isascii() or text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')


# --- pieces --------------------------------------------------------------------------------------

def grouped(some):
    """The texts, short ones joined until they are a piece."""
    held, size = [], 0
    for text in some:
        held, size = [*held, text], size + len(text)
        if size >= PIECE:
            yield ''.join(held)
            held, size = [], 0
    yield ''.join(held)


def at_words(pieces):
    """The same, but a document is cut only before a space after something else, which is between
    two words for every encoding; unless it has none for long."""
    held = None
    for split, begins, text in pieces:
        if held and held[0] == split and not begins:
            begins, text = held[1], held[2] + text
        elif held:
            yield held
        at = text.rfind(' ') if 4 * len(text) >= PIECE else 0
        while at > 0 and text[at - 1].isspace():
            at = text.rfind(' ', 0, at)
        at = at if at > 0 else len(text) if len(text) > 16 * PIECE else 0
        if at > 0:
            yield split, begins, text[:at]
        held = split, begins and at <= 0, text[max(at, 0):]
    if held:
        yield held


def separated(pieces, always):
    """(split, text), with None as the text between the documents of a split: always, or only after
    one that does not end its last line."""
    last = {}
    for split, begins, text in pieces:
        if begins and split in last and (always or last[split] != '\n'):
            yield split, None
        if text:
            yield split, text
            last[split] = text[-1]
