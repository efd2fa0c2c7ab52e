"""Documents out of files: plain text, JSON lines and Parquet, compressed or not.

    for read in documents(input_files(['notes/', 'more.jsonl.gz']), 'text', False, {}):
        print(sum(len(text) for text in read()))

A file of plain text is a document, and so is each line of a .jsonl and each row of a .parquet file.
A document is a function that reads its text in pieces, as often as it is called, so that no file is
ever held as a whole. A file of a kind that holds no plain text, such as a picture, is refused.
"""

import codecs
import contextlib
import functools
import glob
import hashlib
import itertools
import json
import re
import sys
from operator import itemgetter
from pathlib import Path

from folio import options
from folio.cli import UserError, import_library

PIECE = 1 << 18  # bytes of a text that are read at once
WORD_END = re.compile(r'(?<=\S) |(?<=\S\n)(?=[^\W_])')  # or a line's, see at_words
OPENERS = {'': 'io', '.gz': 'gzip', '.bz2': 'bz2', '.xz': 'lzma', '.zst': 'pyzstd'}  # modules
CRLF = 'line ends \\r\\n became \\n (--crlf=True keeps them)'  # what is counted
EMPTY = 'documents without a text were left out'
SEPARATOR = ''  # stands for what separates two documents of a split
FORMATS = '.tar .tgz .zip .7z .rar .pdf .doc .docx .odt .rtf .epub .csv .tsv .xlsx'.split()
NO_TEXT = ('is no plain text: unpack an archive, export a document or picture as text and a table '
           'as JSON lines ({"text": "..."}, in a .jsonl file), convert UTF-16 (iconv -f UTF-16 -t '
           'UTF-8 FILE > NEW), or name the texts only, as in --input="notes/*.txt"')


def input_files(patterns):
    """The files that paths, folders (recursively) and globs name: a list of Paths, each pattern's
    in sorted order; UserError where there are none."""
    files = []
    for pattern in patterns:
        path = options.find(pattern)
        if path.is_dir():
            found = files_in(path)
        elif path.is_file():
            found = [path]
        else:
            found = map(Path, sorted(glob.glob(str(path), recursive=True)))
        found = [file for file in found if file.is_file()]
        if not found:
            raise UserError(f'{pattern}: no such file or glob, or a folder without a text; a pipe '
                            'is --input=-')
        files += found
    return files


def files_in(folder):
    """The files of text in a folder and the folders in it, in sorted order, none of them hidden.
    What is no text, or a link to a folder, is left out, which is said."""
    names = {path: path.relative_to(folder) for path in sorted(folder.rglob('*'))}
    visible = [path for path, name in names.items() if (path.is_file() or path.is_symlink())
               and not any(part.startswith('.') for part in name.parts)]
    left_out = {path: str(names[path]) for path in visible
                if not path.is_file() or reason_against(path)}
    if left_out:
        print(f'left out of {folder}: {len(left_out)} files and links that are not read as text '
              f'(--input=FILE says why), such as {", ".join([*left_out.values()][:9])}')
    return [path for path in visible if path not in left_out]


def kind_of(path):
    """(the ending that says what is in a file, in small letters: .jsonl for x.JSONL.gz; the one
    that says how it is compressed, or '')."""
    name = Path(path.name.lower())
    if name.suffix in OPENERS:
        return Path(name.stem).suffix, name.suffix
    return name.suffix, ''


def reason_against(path):
    """Why a file is not read as a text, and what to do about it; or None."""
    ending, _ = kind_of(path)
    if ending in READERS and ending != '.json':
        return None
    with readable(path) as file:
        head = file.read(1 << 12)
    if ending == '.json' and re.match(rb'\s*(\[|\{\s*\n)', head):
        return 'is JSON that is not in lines: jq -c ".[]" makes lines of an array'
    return NO_TEXT if ending in FORMATS or b'\0' in head or head.startswith(b'%PDF') else None


def documents(paths, field, crlf, counts):
    """The documents of the files, in order, which have their text in `field` if they are JSON or
    Parquet; UserError for a file that can't be read. crlf: keep \\r\\n in plain text, where else it
    becomes \\n. counts: a dict that is told {(path, CRLF or EMPTY): how often}."""
    for path in paths:
        if reason := reason_against(path):
            raise UserError(f'{path} {reason}')
        if path.stat().st_size == 0:
            counts[path, EMPTY] = 1
            continue
        reader = READERS.get(kind_of(path)[0])
        if reader is None:
            yield functools.partial(read_plain, path, crlf, counts)
            continue
        counts[path, EMPTY] = 0
        for text in reader(path, field):
            counts[path, EMPTY] += not text
            if text:
                yield functools.partial(cut_up, text)


def fingerprint(document):
    """(a number below 2^64 that depends on the text alone, how many characters it has)."""
    hashed, length = hashlib.blake2b(digest_size=8), 0
    for text in document():
        hashed.update(text.encode())
        length += len(text)
    return int.from_bytes(hashed.digest(), 'little'), length


def check_libraries(names):
    """UserError if a library that files with these names need is not installed."""
    for path in map(Path, names):
        ending, compression = kind_of(path)
        import_library(OPENERS[compression], path)
        if ending == '.parquet':
            import_library('pyarrow.parquet', path)


# --- formats -------------------------------------------------------------------------------------

@contextlib.contextmanager
def readable(path):
    """The file, decompressed, open for reading bytes; whatever goes wrong with one that is cut or
    broken is a UserError."""
    compression = kind_of(path)[1]
    module = import_library(OPENERS[compression], path)
    more = {}
    if compression == '.zst':  # zstd --long has wide windows
        more = {'level_or_option': {module.DParameter.windowLogMax: 31}}
    try:
        with module.open(path, 'rb', **more) as file:
            yield file
    except UserError:
        raise
    except UnicodeDecodeError:
        raise UserError(f'{path} is not UTF-8 text; export it as that, or if it is an old one: '
                        f'iconv -f LATIN1 -t UTF-8 {path} > NEW') from None
    except Exception as error:  # each library has its own
        reason = getattr(error, 'strerror', None) or error
        raise UserError(f'{path} cannot be read: {reason}') from None


def read_plain(path, crlf, counts):
    """The text of a UTF-8 file in pieces, without a byte order mark; see documents."""
    decoder, held, found = codecs.getincrementaldecoder('utf-8-sig')(), '', 0
    with readable(path) as file:
        while block := file.read(PIECE):
            text = held + decoder.decode(block)
            held = '\r' if text.endswith('\r') else ''  # which may be before a \n
            text = text.removesuffix(held)
            if not crlf and '\r' in text:  # the search for two characters is slow
                found += text.count('\r\n')
                text = text.replace('\r\n', '\n')
            yield text
        yield held + decoder.decode(b'', final=True)
    counts[path, CRLF] = found


def read_json_lines(path, field):
    """The texts in `field` of the JSON objects, one a line, '' for null; UserError for a line that
    is no such object."""
    with readable(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield text_in(line, field, f'{path}, line {number}')


def text_in(line, field, where):
    """The text in `field` of a JSON object, '' for null; UserError without one."""
    try:
        text = json.loads(line)[field]
        text = '' if text is None else text
        # JSON may hold half a surrogate pair, which UTF-8 can't: it becomes U+FFFD
        return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')
    except Exception:  # it is no JSON, no object, or has no such text
        raise UserError(f'{where}: no text is called {field} (--field=NAME), as in {{"{field}": '
                        f'"..."}}, in {line.decode(errors="replace").strip():.80}') from None


def read_parquet(path, field):
    """The texts in the column `field`, '' or None where a row has none; UserError for a column that
    holds something else."""
    parquet = import_library('pyarrow.parquet', path)
    with readable(path) as file:
        table = parquet.ParquetFile(file)
        kinds = {column.name: str(column.type) for column in table.schema_arrow}
        if not re.match('(dictionary<values=)?(large_)?string|null', kinds.get(field, '')):
            raise UserError(f'{path}: no column of texts is called {field} (--field=NAME); there '
                            f'are: {", ".join(f"{name} ({kinds[name]:.40})" for name in kinds)}')
        for batch in table.iter_batches(256, columns=[field]):
            yield from batch.column(0).to_pylist()


READERS = {'.jsonl': read_json_lines, '.ndjson': read_json_lines, '.json': read_json_lines,
           '.parquet': read_parquet}  # by ending; all else is plain text


def plain(data, name):
    """The text of a plain file's bytes, without a byte order mark and with a newline for each
    \\r\\n, which is said; ValueError for what is not UTF-8."""
    text = data.decode('utf-8-sig')
    if found := text.count('\r\n'):
        print(f'{name}: {found:,} \\r\\n became \\n', file=sys.stderr)
    return text.replace('\r\n', '\n')


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


def separated(passages, by_words):
    """(split, text) of passages, (number of the document, split, text), with SEPARATOR as the text
    between two documents of a split. by_words: they are cut by at_words; else one that ends its
    last line needs no SEPARATOR."""
    last = {}  # character of each split
    for (_, split), document in itertools.groupby(
            filter(itemgetter(2), passages), key=itemgetter(0, 1)):
        if split in last and (by_words or last[split] != '\n'):
            yield split, SEPARATOR
        pieces = (text for *_, text in document)
        for text in at_words(pieces) if by_words else pieces:
            yield split, text
            last[split] = text[-1]
