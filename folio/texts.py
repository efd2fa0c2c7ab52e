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
CRLF = 'line ends \\r\\n became \\n (--crlf=True keeps them)'  # what is counted
EMPTY = 'documents without a text were left out'
SEPARATOR = ''  # stands for what separates two documents of a split
ENDINGS = (  # of files that hold no plain text: what they are, and what to do
    dict.fromkeys(['.tar', '.tgz', '.zip', '.7z', '.rar'], 'an archive: unpack it')
    | dict.fromkeys(['.pdf', '.doc', '.docx', '.odt', '.rtf', '.epub'],
                    'a document with a layout: export it as plain text')
    | dict.fromkeys(['.csv', '.tsv', '.xlsx'],
                    'a table: turn it into JSON lines, such as {"text": "..."}, in a .jsonl file'))
BINARY = ('a picture, packed data or UTF-16: export it as text, unpack it, convert it (iconv '
          '-f UTF-16 -t UTF-8 FILE > NEW), or name the texts only, as in --input="notes/*.txt"')


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
    in sorted order; UserError where there are none."""
    files = []
    for pattern in patterns:
        path = options.find(pattern)
        if path.is_dir():
            found = files_in(path)
        elif path.exists():
            found = [path]
        else:
            found = sorted(map(Path, glob.glob(os.path.expanduser(pattern), recursive=True)))
        found = [file for file in found if file.is_file()]
        if not found:
            raise UserError(f'{pattern}: no such file or glob, or a folder without a text; [[] '
                            'stands for [, and ? for a comma in a name; a pipe is --input=-')
        files += found
    return files


def files_in(folder):
    """The files of text in a folder and the folders in it, in sorted order, none of them hidden.
    What is no text, or a link to a folder, is left out, which is said."""
    paths = [path for path in sorted(folder.rglob('*')) if path.is_file() or path.is_symlink()]
    visible = [path for path in paths
               if not any(part.startswith('.') for part in path.relative_to(folder).parts)]
    kept = [path for path in visible if path.is_file() and not reason_against(path)]
    left_out = [str(path.relative_to(folder)) for path in sorted({*visible} - {*kept})]
    if left_out:
        print(f'left out of {folder}: {len(left_out)} files and links that are not read as text '
              f'(--input=FILE says why), such as {", ".join(left_out[:9])}')
    return kept


def kind_of(path):
    """(the ending that says what is in a file, in small letters: .jsonl for x.JSONL.gz; the one
    that says how it is compressed, or '')."""
    name = Path(path.name.lower())
    if name.suffix in COMPRESSED:
        return Path(name.stem).suffix, name.suffix
    return name.suffix, ''


def reason_against(path):
    """What a file looks like that is not read as a text, and what to do about it; or None."""
    ending, _ = kind_of(path)
    if ending in ENDINGS or ending in READERS and ending != '.json':
        return ENDINGS.get(ending)
    head = next(read_blocks(path), b'')[:1 << 12]
    if ending == '.json' and re.match(rb'\s*(\[|\{\s*\n)', head):
        return 'JSON that is not in lines: jq -c ".[]" makes lines of an array'
    return BINARY if b'\0' in head or head.startswith(b'%PDF') else None


def documents(paths, field, crlf=False, counts=None):
    """The Documents of the files, in order; UserError for a file that can't be read.

    field: where the text is, a key of JSON lines and a column of Parquet files. crlf: keep \\r\\n
    in plain text, where else it becomes \\n. counts: a dict that is told what was changed or left
    out, {(path, what): how often}.
    """
    counts = {} if counts is None else counts
    for path in paths:
        if reason := reason_against(path):
            raise UserError(f'{path} looks like {reason}')
        reader = READERS.get(kind_of(path)[0])
        if reader is None and path.stat().st_size:
            yield Document(lambda path=path: read_plain(path, crlf, counts))
            continue
        counts[path, EMPTY] = 0
        for text in reader(path, field) if reader else ['']:
            counts[path, EMPTY] += not text
            if text:
                yield Document(lambda text=text: cut_up(text))


def plain_size(paths):
    """The bytes of text in the files, or None if some are compressed or of another format."""
    if any(compression or ending in READERS for ending, compression in map(kind_of, paths)):
        return None
    return sum(path.stat().st_size for path in paths)


def check_libraries(names):
    """UserError if a library that files with these names need is not installed."""
    for path in map(Path, names):
        ending, compression = kind_of(path)
        if compression == '.zst':
            import_library('zstandard', path)
        if ending == '.parquet':
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


def read_blocks(path):
    """The file's bytes, decompressed, in blocks; UserError where it is cut or broken."""
    _, compression = kind_of(path)
    with readable(path):
        if compression == '.zst':
            yield from zstd_blocks(path)
            return
        opener = importlib.import_module(OPENERS.get(compression, 'io'))
        with opener.open(path, 'rb') as file:
            while block := file.read(PIECE):
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
            if not crlf and '\r' in text:  # the search for two characters is slow
                held = '\r' if block and text.endswith('\r') else ''
                text = text.removesuffix(held)
                found += text.count('\r\n')
                text = text.replace('\r\n', '\n')
            yield text
    except UnicodeDecodeError as error:
        place = read - len(error.object) + error.start  # its object ends where reading does
        raise UserError(f'{path} is not UTF-8 text: byte {place:,} is broken; export it as plain '
                        f'text, or if it is an old one, iconv -f LATIN1 -t UTF-8 {path} > NEW'
                        ) from None
    counts[path, CRLF] = found


def read_json_lines(path, field):
    """The texts in `field` of the JSON objects, one a line, '' for null; UserError for a line that
    is no such object."""
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            with readable(f'{path}, line {number}, where {{"{field}": "..."}} should be,'):
                yield text_in(json.loads(line), field)


def text_in(record, field):
    """The text in `field` of a JSON object, '' for null; ValueError without one."""
    text = record.get(field, False) if isinstance(record, dict) else False
    if not isinstance(text, str | None):
        raise ValueError(f'no text is called {field} (--field=NAME) in {str(record):.80}')
    # JSON may hold half a surrogate pair, which UTF-8 can't: it becomes U+FFFD
    return (text or '').encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')


def read_parquet(path, field):
    """The texts in the column `field`, '' or None where a row has none; UserError for a column that
    holds something else."""
    parquet = import_library('pyarrow.parquet', path)
    import tempfile  # which loads compressions
    with readable(path), tempfile.TemporaryFile() as plain:
        _, compression = kind_of(path)
        if compression:  # Parquet is read from its end
            plain.writelines(read_blocks(path))
        table = parquet.ParquetFile(plain if compression else path)
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
    text = data.decode('utf-8-sig')
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
        held += piece
        while len(held) > size:
            found = WORD_END.search(held, size // 4 + 1, size)
            end = found.start() if found else size
            yield held[:end]
            held = held[end:]
    if held:
        yield held


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
