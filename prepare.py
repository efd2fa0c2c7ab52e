"""Text into token files: data/NAME/train.bin, val.bin and meta.json.

    python prepare.py data/shakespeare_char.py
    python prepare.py --input=mybook.txt --tokenizer=char --name=mybook

A recipe, data/NAME.py, is Python whose assignments are the options below. The .bin files are bare
little-endian uint16 token ids (uint32 where the vocabulary exceeds 65,536).
"""

import codecs
import dataclasses
import glob
import hashlib
import http.client
import json
import os
import re
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import config
import script
from script import UserError, progress_bar
from tokenizer import Tokenizer, tiktoken_spec

PIECE = 1 << 20  # bytes of text in flight


@dataclass
class PrepareConfig:
    """What to prepare."""
    input: list[str] = field(default_factory=list)  # files, folders and globs of UTF-8 text
    url: str | None = None  # where to fetch the text, if there is no input
    sha256: str | None = None  # what the raw file's checksum must be, wherever it came from
    file: str | None = None  # the raw file's name in data/NAME/ and mirrors; None: the URL's end
    tokenizer: str = 'char'  # char, byte, gpt2 or another of tiktoken's encodings
    val_fraction: float = 0.1  # the end of the text that becomes val.bin
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
    if not 0 < options.val_fraction < 1:
        raise UserError(f'val_fraction must be between 0 and 1, not {options.val_fraction}')
    return options


def prepare(options):
    """Make data/NAME/ of the options; whatever was there stays until all of it is written."""
    folder = config.ROOT / 'data' / options.name
    paths = input_files(options.input) if options.input else [fetch(options, folder)]
    characters, alphabet = survey(paths, options.tokenizer == 'char')
    cut = int(characters * (1 - options.val_fraction))
    if not 0 < cut < characters:
        raise UserError(f'{options.name}: {characters} characters are too few to split')
    spec = {'char': {'kind': 'char', 'chars': alphabet}, 'byte': {'kind': 'byte'}}.get(
        options.tokenizer) or tiktoken_spec(options.tokenizer)
    tokenizer = Tokenizer(spec)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = '<u2' if tokenizer.vocab_size <= 1 << 16 else '<u4'
    try:
        tokens = write_tokens(paths, cut, tokenizer, dtype, folder)
        meta = {'tokenizer': spec, 'vocab_size': tokenizer.vocab_size,
                'dtype': np.dtype(dtype).name, 'tokens': tokens, 'characters': characters,
                'recipe': dataclasses.asdict(options)}
        (folder / 'meta.json.tmp').write_text(json.dumps(meta), encoding='utf-8')
        publish(folder)
    except OSError as error:
        raise UserError(f'{folder} could not be written: {error}') from None
    print(f'{folder}: {characters:,} characters, a vocabulary of {tokenizer.vocab_size:,}, '
          f'{tokens["train"]:,} tokens for training and {tokens["val"]:,} for validation')


def publish(folder):
    """Put the finished files in place; at no moment is a .bin beside another's meta.json."""
    for name in ('train.bin', 'val.bin'):
        (folder / name).unlink(missing_ok=True)
    for name in ('meta.json', 'val.bin', 'train.bin'):
        os.replace(folder / f'{name}.tmp', folder / name)


def input_files(patterns):
    """The files that paths, folders (recursively) and globs name, each one's in sorted order."""
    files = []
    for pattern in patterns:
        path = config.find(pattern)
        if path.is_dir():
            found = sorted(file for file in path.rglob('*') if file.is_file())
        else:
            names = glob.glob(os.path.expanduser(pattern), recursive=True)
            found = [path] if path.is_file() else sorted(map(Path, names))
        if not found:
            raise UserError(f'{pattern}: no such file, folder or glob')
        files += [file for file in found if file.is_file()]
    return files


def fetch(options, folder):
    """The raw file: data/NAME/'s, else DATA_MIRROR's (a folder or a URL prefix), else the URL's."""
    name = options.file or options.url.rpartition('/')[2]
    path, mirror = folder / name, os.environ.get('DATA_MIRROR', '')
    if not path.exists() and mirror and Path(mirror, name).is_file():
        path = Path(mirror, name)
    if path.exists():
        check_sum(path, options.sha256)
        return path
    urls = [f'{mirror.rstrip("/")}/{name}'] if '://' in mirror else []
    for url in [*urls, options.url]:
        try:
            return download(url, path, options.sha256)
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = f'{type(error).__name__}: {error}'
    raise UserError(f'{options.url} could not be fetched ({reason}); save that file as {path}, or '
                    'name a folder that has it in DATA_MIRROR, or train without a download: '
                    'python train.py --dataset=stdlib')


def download(url, path, sha256):
    """Fetch url to path, which appears only when it is whole. Raises OSError or HTTPException."""
    part = path.with_name(path.name + '.part')
    part.parent.mkdir(parents=True, exist_ok=True)
    with urllib.request.urlopen(url, timeout=30) as response, open(part, 'wb') as file:
        size = int(response.headers.get('Content-Length') or 0)
        with progress_bar(total=size or None, desc=path.name, unit='B', unit_scale=True) as bar:
            while block := response.read(PIECE):
                file.write(block)
                if bar is not None:
                    bar.update(len(block))
    if size and part.stat().st_size != size:
        raise OSError(f'{part.stat().st_size:,} of {size:,} bytes came')
    check_sum(part, sha256)
    os.replace(part, path)
    return path


def check_sum(path, expected):
    if expected:
        digest = hashlib.sha256()
        with open(path, 'rb') as file:
            while block := file.read(PIECE):
                digest.update(block)
        if digest.hexdigest() != expected:
            raise UserError(f'{path} is not the file it should be: its sha256 is '
                            f'{digest.hexdigest()}, not {expected}; remove it to fetch it again')


def read_text(paths):
    """The text of the files, one after another, in pieces; newlines stay as they are."""
    for path in paths:
        decoder, start = codecs.getincrementaldecoder('utf-8')(), 0
        try:
            with open(path, 'rb') as file:
                while block := file.read(PIECE):
                    yield decoder.decode(block)
                    start = file.tell() - len(decoder.getstate()[0])  # of what is not decoded yet
                decoder.decode(b'', final=True)
        except UnicodeDecodeError as error:
            at = start + error.start
            raise UserError(f'{path} is not UTF-8 text: byte {at:,} is broken') from None
        except OSError as error:
            raise UserError(f'{path} cannot be read: {error.strerror}') from None


def survey(paths, with_alphabet):
    """(characters, alphabet): the length of the text, and its distinct characters, sorted."""
    characters, alphabet = 0, set()
    for text in read_text(paths):
        characters += len(text)
        if with_alphabet:
            alphabet.update(text)
    return characters, ''.join(sorted(alphabet))


def split_at(texts, cut):
    """('train', text) for the first `cut` characters, ('val', text) for the rest."""
    for text in texts:
        if cut > 0:
            yield 'train', text[:cut]
        if len(text) > cut:
            yield 'val', text[max(cut, 0):]
        cut -= len(text)


def at_words(pieces):
    """The same text, cut only between a letter and a space: no encoding's pattern spans that."""
    held = {'train': '', 'val': ''}
    for split, text in pieces:
        text = held[split] + text
        at = text.rfind(' ')
        while at > 0 and not text[at - 1].isalpha():
            at = text.rfind(' ', 0, at)
        at = at if at > 0 else len(text) if len(text) > 16 * PIECE else 0
        yield split, text[:at]
        held[split] = text[at:]
    yield from held.items()


def write_tokens(paths, cut, tokenizer, dtype, folder):
    """Write train.bin.tmp and val.bin.tmp; returns how many tokens each has."""
    counts = {'train': 0, 'val': 0}
    pieces = at_words(split_at(read_text(paths), cut))
    total = sum(path.stat().st_size for path in paths)
    with (open(folder / 'train.bin.tmp', 'wb') as train, open(folder / 'val.bin.tmp', 'wb') as val,
          progress_bar(total=total, desc=folder.name, unit='B', unit_scale=True) as bar):
        for split, text in pieces:
            ids = tokenizer.encode(text).astype(dtype)
            {'train': train, 'val': val}[split].write(ids.tobytes())
            counts[split] += len(ids)
            if bar is not None:
                bar.update(len(text.encode()))
        for file in (train, val):
            file.flush()
            os.fsync(file.fileno())
    return counts


if __name__ == '__main__':
    script.run(main)
