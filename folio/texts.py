"""Documents out of files: plain text, JSON lines and Parquet, compressed or not.

    for document in documents(input_files(['notes/', 'more.jsonl.gz']), 'text'):
        print(sum(len(text) for text in document.pieces()))

A file of plain text is a document, and so is each line of a .jsonl and each row of a .parquet file.
A text is read piece by piece, JSON by lines and Parquet by some rows, never a file as a whole. A
file of a kind that holds no plain text, such as a picture, is refused.
"""

import codecs
import contextlib
import glob
import hashlib
import importlib
import itertools
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
CRLF, EMPTY = 'line ends \\r\\n', 'documents without a text'  # what is counted
SEPARATOR = ''  # stands for what separates two documents of a split
UNPACK, EXPORT = 'an archive: unpack it', 'a document with a layout: export it as plain text'
TABLE = 'a table: turn it into JSON lines, such as {"text": "..."}, in a .jsonl file'
ENDINGS = {'.tar': UNPACK, '.tgz': UNPACK, '.zip': UNPACK, '.7z': UNPACK, '.rar': UNPACK,
           '.pdf': EXPORT, '.doc': EXPORT, '.docx': EXPORT, '.odt': EXPORT, '.rtf': EXPORT,
           '.epub': EXPORT, '.csv': TABLE, '.tsv': TABLE, '.xlsx': TABLE}
UTF16 = 'UTF-16 text: convert it, iconv -f UTF-16 -t UTF-8 FILE > NEW'
PICTURE = 'a picture: name the texts only, as in --input="notes/*.txt"'
FIRST_BYTES = {b'%PDF': EXPORT, b'PK\3\4': 'an archive, or a document of an office program',
               b'\x89PNG': PICTURE, b'\xff\xd8\xff': PICTURE, b'GIF8': PICTURE,
               b'\x1f\x8b': 'gzip data: decompress it', b'BZh': 'bzip2 data: decompress it',
               b'\xfd7zXZ': 'xz data: decompress it', b'(\xb5/\xfd': 'zstd data: decompress it',
               b'PAR1': 'a Parquet file: call it .parquet', b'\xff\xfe': UTF16, b'\xfe\xff': UTF16}


@dataclass
class Document:
    """A text in pieces, which can be read more than once."""
    pieces: Callable  # () -> an iterable of str

    def fingerprint(self):
        """(a number below 2^64 that depends on the text alone, how many characters it has)."""
        hashed, length = hashlib.blake2b(digest_size=8), 0
        for text in self.pieces():
            hashed.update(text.encode())
            length += len(text)
        return int.from_bytes(hashed.digest(), 'little'), length


def input_files(patterns):
    """The files that paths, folders (recursively) and globs name: a list of Paths, each pattern's
    in sorted order; UserError where there are none. Of a folder, what is hidden is left out, and
    so is, which is said, what is no text."""
    files = []
    for pattern in patterns:
        path = options.find(pattern)
        if path.is_dir():
            found = files_in(path)
        else:
            names = glob.glob(os.path.expanduser(pattern), recursive=True)
            found = sorted(map(Path, names)) if not path.exists() else [path]
        found = [file for file in found if file.is_file()]
        if not found:
            raise UserError(f'{pattern}: {reason_for_none(path, str(pattern))}')
        files += found
    return files


def reason_for_none(path, pattern):
    """Why a pattern names no file, and what to do."""
    if path.is_dir():
        return 'no file in this folder is a text'
    if path.exists():
        return 'no file but a pipe; a text is read more than once, so use --input=-'
    hints = {'[': 'in a glob, [[] stands for [', ',': 'items are separated by commas, and ? stands '
             'for a comma in a name'}
    hint = [hint for char, hint in hints.items() if char in pattern]
    return '; '.join(['no such file, folder or glob', *hint])


def files_in(folder):
    """The files of text in a folder and the folders in it, in sorted order, none of them hidden."""
    paths = [path for path in sorted(folder.rglob('*')) if path.is_file() and not any(
        part.startswith('.') for part in path.relative_to(folder).parts)]
    links = sum(path.is_symlink() and path.is_dir() for path in folder.rglob('*'))
    if links:
        print(f'left out of {folder}: {links} links to folders; name those too')
    foreign = [path for path in paths if reason_against(path)]
    if foreign:
        names = [str(path.relative_to(folder)) for path in foreign[:9]]
        more = ', ...' if len(foreign) > len(names) else ''
        print(f'left out of {folder}: {len(foreign)} files that are not read as text (--input=FILE '
              f'says why): {", ".join(names)}{more}')
    left_out = set(foreign)
    return [path for path in paths if path not in left_out]


def ending_of(path):
    """The ending that says what is in a file, in small letters: .jsonl for x.JSONL.gz."""
    inner = path.with_suffix('') if compression_of(path) else path
    return inner.suffix.lower()


def compression_of(path):
    """The ending that says how a file is compressed, '' where it is not."""
    ending = path.suffix.lower()
    return ending if ending in COMPRESSED else ''


def reason_against(path):
    """What a file looks like that is not read as a text, and what to do about it; or None."""
    ending = ending_of(path)
    if ending in ENDINGS or ending in READERS and ending != '.json':
        return ENDINGS.get(ending)
    head = next(read_blocks(path, 1 << 12), b'')
    if ending == '.json' and re.match(rb'\s*(\[|\{\s*\n)', head):
        return 'JSON that is not in lines: jq -c ".[]" makes lines of an array'
    for first_bytes, reason in FIRST_BYTES.items():
        if head.startswith(first_bytes):
            return reason
    return 'binary data: it has NUL bytes' if b'\0' in head else None


def documents(paths, field, crlf=False, counts=None):
    """The Documents of the files, in order; UserError for a file that can't be read.

    field: where the text is, a key of JSON lines and a column of Parquet files. crlf: keep \\r\\n
    in plain text, where else it becomes \\n. counts: a dict that is told what was changed or left
    out, {(path, what): how often}.
    """
    counts = {} if counts is None else counts
    for path in paths:
        reason = reason_against(path)
        if reason:
            raise UserError(f'{path} looks like {reason}')
        reader = READERS.get(ending_of(path))
        if path.stat().st_size == 0:
            counts[path, EMPTY] = 1
        elif reader is None:
            yield Document(lambda path=path: read_plain(path, crlf, counts))
        else:
            missing = 0
            for text in reader(path, field):
                if text:
                    yield Document(lambda text=text: cut_up(text))
                missing += not text
                counts[path, EMPTY] = missing


def looks_like_json(path):
    """Whether a file without a name of its own begins as an object of JSON, or an array of them."""
    with open(path, 'rb') as file:
        return bool(re.match(rb'\s*\[?\s*\{\s*"', file.read(1 << 12)))


def plain_size(paths):
    """The bytes of text in the files, or None if some are compressed or of another format."""
    if any(compression_of(path) or ending_of(path) in READERS for path in paths):
        return None
    return sum(path.stat().st_size for path in paths)


def check_libraries(names):
    """UserError if a library that files with these names need is not installed."""
    for path in map(Path, names):
        if compression_of(path) == '.zst':
            import_library('zstandard', path)
        if ending_of(path) == '.parquet':
            import_library('pyarrow.parquet', path)


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


def read_blocks(path, size=None):
    """The file's bytes, decompressed, in blocks; UserError where it is cut or broken."""
    with readable(path):
        compression = compression_of(path)
        if compression == '.zst':
            yield from zstd_blocks(path)
            return
        opener = importlib.import_module(OPENERS.get(compression, 'io'))
        with opener.open(path, 'rb') as file:
            while block := file.read(size or PIECE):
                yield block


def zstd_blocks(path):
    """The decompressed blocks of a Zstandard file; EOFError where its last frame is cut."""
    library = import_library('zstandard', path)
    decompressor = library.ZstdDecompressor(max_window_size=1 << 31)  # zstd's --long=31
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


def read_plain(path, crlf, counts):
    """The text of a UTF-8 file in pieces, without a byte order mark. Unless `crlf` is true, \\r\\n
    becomes \\n, which counts[path, CRLF] counts."""
    decoder, read = codecs.getincrementaldecoder('utf-8-sig')(), 0
    held, found = '', 0  # a \r that may be before a \n
    try:
        for block in itertools.chain(read_blocks(path), [b'']):
            read += len(block)
            text = held + decoder.decode(block, final=not block)
            if not crlf and '\r' in text:
                held = '\r' if block and text[-1] == '\r' else ''
                text = text.removesuffix(held)
                found += text.count('\r\n')
                text = text.replace('\r\n', '\n')
            yield text
    except UnicodeDecodeError as error:
        place = read - len(error.object) + error.start  # its object ends where reading does
        raise UserError(f'{path} is not UTF-8 text: byte {place:,} is broken; text in an older '
                        f'encoding: iconv -f LATIN1 -t UTF-8 {path} > NEW') from None
    counts[path, CRLF] = found


def read_json_lines(path, field):
    """The texts in `field` of the JSON objects, one a line, '' for null; UserError for a line that
    is no such object."""
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            record = error
        if not isinstance(record, dict):
            reason = record if isinstance(record, Exception) else 'it is no object'
            raise UserError(f'{path}, line {number}: {reason}; each line has to be an object, as '
                            f'{{"{field}": "..."}} (jq -c ".[]" makes lines of an array)')
        text = record.get(field, False)
        if not isinstance(text, str | None):
            raise UserError(f'{path}, line {number}: no text is called {field} (--field=NAME); '
                            f'there are: {", ".join(record)}')
        # JSON may hold half a surrogate pair, which UTF-8 can't: it becomes U+FFFD
        yield (text or '').encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')


def read_parquet(path, field):
    """The texts in the column `field`, '' or None where a row has none; UserError for a column that
    holds something else."""
    parquet = import_library('pyarrow.parquet', path)
    import tempfile  # which loads compressions
    with readable(path), tempfile.TemporaryFile() as plain:
        if compression_of(path):  # Parquet is read from its end
            plain.writelines(read_blocks(path))
        table = parquet.ParquetFile(plain if compression_of(path) else path)
        kinds = {column.name: str(column.type) for column in table.schema_arrow}
        if not re.match('(dictionary<values=)?(large_)?string|null', kinds.get(field, '')):
            raise UserError(f'{path}: no column of texts is called {field} (--field=NAME); there '
                            f'are: {", ".join(f"{name} ({kinds[name]:.40})" for name in kinds)}')
        for batch in table.iter_batches(256, columns=[field]):
            yield from batch.column(0).to_pylist()


READERS = {'.jsonl': read_json_lines, '.ndjson': read_json_lines, '.json': read_json_lines,
           '.parquet': read_parquet}  # by ending; all else is plain text


def plain(data):
    """(text, how often) of the bytes of a plain file: without a byte order mark, and with a newline
    for each \\r\\n. ValueError for what is not UTF-8."""
    try:
        text = data.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise ValueError(f'it is not UTF-8 text: byte {error.start:,} is broken') from None
    return text.replace('\r\n', '\n'), text.count('\r\n')


# --- pieces --------------------------------------------------------------------------------------

def cut_up(text):
    """The text in pieces of PIECE characters."""
    return (text[i:i + PIECE] for i in range(0, len(text), PIECE))


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
