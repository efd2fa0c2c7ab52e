"""Documents out of files: plain text, JSON lines and Parquet, compressed or not.

    for document in documents(input_files(['notes/', 'more.jsonl.gz']), 'text'):
        print(sum(len(text) for text in document.pieces()))

A file of plain text is a document, and so is each line of a .jsonl and each row of a .parquet file.
A text is read piece by piece, JSON by lines and Parquet by some rows, never a file as a whole.
"""

import codecs
import contextlib
import glob
import hashlib
import importlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from folio import options
from folio.cli import UserError, import_library

PIECE = 1 << 18  # bytes of a text that are read at once
WORD_END = re.compile(r'(?<=\S) |(?<=\S\n)(?=[^\W_])')  # or a line's, see at_words
OPENERS = {'.gz': 'gzip', '.bz2': 'bz2', '.xz': 'lzma'}  # modules, imported where they are needed
COMPRESSED = (*OPENERS, '.zst')
SEPARATOR = ''  # stands for what separates two documents of a split


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
    """The files that paths, folders (recursively) and globs name: a list of Paths, each pattern's
    in sorted order, without what is hidden in a folder; UserError where there are none."""
    files = []
    for pattern in patterns:
        path = options.find(pattern)
        if path.is_dir():
            found = [file for file in path.rglob('*') if not any(
                part.startswith('.') for part in file.relative_to(path).parts)]
        else:
            names = glob.glob(os.path.expanduser(pattern), recursive=True)
            found = [path] if path.exists() else map(Path, names)
        found = sorted(file for file in found if file.is_file())
        if not found:
            raise UserError(f'{pattern}: no such file, folder or glob')
        files += found
    return files


def documents(paths, field):
    """The Documents of the files, in order; UserError for a file that can't be read. field: where
    the text is, a key of JSON lines and a column of Parquet files."""
    readers = {'.jsonl': read_json_lines, '.parquet': read_parquet}
    for path in paths:
        kind = Path(path.stem if path.suffix in COMPRESSED else path.name).suffix
        if kind in readers:
            for text in readers[kind](path, field):
                yield Document(lambda text=text: [text])
        else:
            yield Document(lambda path=path: read_plain(path))


def plain_size(paths):
    """The bytes of text in the files, or None if some are compressed or of another format."""
    if any(path.suffix in (*COMPRESSED, '.jsonl', '.parquet') for path in paths):
        return None
    return sum(path.stat().st_size for path in paths)


# --- formats -------------------------------------------------------------------------------------

@contextlib.contextmanager
def readable(path):
    """A UserError, raised from here, for whatever goes wrong with a file that is cut or broken."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # each library has its own
        reason = getattr(error, 'strerror', None) or error
        raise UserError(f'{path} cannot be read: {reason}') from None


def read_blocks(path):
    """The file's bytes, decompressed, in blocks; UserError where it is cut or broken."""
    with readable(path):
        if path.suffix == '.zst':
            yield from zstd_blocks(path)
            return
        opener = importlib.import_module(OPENERS.get(path.suffix, 'io'))
        with opener.open(path, 'rb') as file:
            while block := file.read(PIECE):
                yield block


def zstd_blocks(path):
    """The decompressed blocks of a Zstandard file; EOFError where its last frame is cut."""
    decompressor = import_library('zstandard', path).ZstdDecompressor()
    frame = decompressor.decompressobj()
    with open(path, 'rb') as file:
        while block := frame.unused_data or file.read(1 << 16):
            if frame.eof:
                frame = decompressor.decompressobj()
            yield frame.decompress(block)
    if not frame.eof:
        raise EOFError('it ends within a frame')


def read_lines(path):
    """The file's lines, decompressed, as bytes without their ends."""
    parts = []  # of a line that is not whole yet
    for block in read_blocks(path):
        *ends, rest = block.split(b'\n')
        for end in ends:
            yield b''.join([*parts, end])
            parts = []
        parts.append(rest)
    yield b''.join(parts)


def read_plain(path):
    """The text of a UTF-8 file in pieces; newlines and a byte order mark stay as they are."""
    decoder, read = codecs.getincrementaldecoder('utf-8')(), 0
    try:
        for block in read_blocks(path):
            read += len(block)
            yield decoder.decode(block)
        decoder.decode(b'', final=True)
    except UnicodeDecodeError as error:
        place = read - len(error.object) + error.start  # its object ends where reading does
        raise UserError(f'{path} is not UTF-8 text: byte {place:,} is broken') from None


def read_json_lines(path, field):
    """The texts in `field` of the JSON objects, one a line; UserError for a line without one."""
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f'{path}, line {number}: {error}') from None
        names = record if isinstance(record, dict) else {'no object': None}
        if not isinstance(names.get(field), str):
            raise UserError(f'{path}, line {number}: no text is called {field} (--field=NAME); '
                            f'there are: {", ".join(names)}')
        # JSON may hold half a surrogate pair, which UTF-8 can't: it becomes U+FFFD
        yield names[field].encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')


def read_parquet(path, field):
    """The texts in the column `field`; rows without one are left out."""
    parquet = import_library('pyarrow.parquet', path)
    import tempfile  # which loads compressions
    with readable(path), tempfile.TemporaryFile() as plain:
        if path.suffix in COMPRESSED:  # Parquet is read from its end
            plain.writelines(read_blocks(path))
        table = parquet.ParquetFile(plain if path.suffix in COMPRESSED else path)
        names = table.schema_arrow.names
        if field not in names:
            raise UserError(f'{path}: no column is called {field} (--field=NAME); there are: '
                            f'{", ".join(names)}')
        for batch in table.iter_batches(256, columns=[field]):
            yield from filter(None, batch.column(0).to_pylist())


# --- pieces --------------------------------------------------------------------------------------

def group_pieces(pieces, length=len):
    """Lists of successive pieces whose lengths add up to PIECE, or just more."""
    group, size = [], 0
    for piece in pieces:
        group.append(piece)
        size += length(piece)
        if size >= PIECE:
            yield group
            group, size = [], 0
    if group:
        yield group


def at_words(pieces, size=None):
    """The same text in pieces of `size` characters at most, or PIECE, that end between two words
    for every encoding: before a space after something else, or between a single newline and a
    letter or digit. Where there is no such place, within a word or spaces, they end anywhere."""
    held, size = '', size or PIECE
    for piece in pieces:
        held, start = held + piece, 0
        while end := end_of_piece(held, start, size):
            yield held[start:end]
            start = end
        held = held[start:]
    if held:
        yield held


def end_of_piece(text, start, size):
    """Where the piece of a text ends that begins at start; 0 if the text is too short to know."""
    last = start + size
    found = WORD_END.search(text, start + size // 4 + 1, last)
    if found:
        return found.start()
    return last if len(text) > last else 0


def separated(parts, always):
    """(split, text) of all parts, (split, pieces of a document), with SEPARATOR as the text between
    two documents of a split: always, or only after one that does not end its last line."""
    last = {}  # character of each split
    for split, pieces in parts:
        begins = True
        for text in filter(None, pieces):
            if begins and split in last and (always or last[split] != '\n'):
                yield split, SEPARATOR
            yield split, text
            begins, last[split] = False, text[-1]
