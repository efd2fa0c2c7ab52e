"""Files from the network: resumed where they broke off, checked, and there only when whole.

    path = download('https://example.org/book.txt', Path('data/book/book.txt'))
"""

import contextlib
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from folio.cli import UserError, first_line, progress_bar
from folio.options import command

BLOCK, TIMEOUT = 1 << 20, 30  # bytes; seconds without a byte
FAILURES = (OSError, ValueError, http.client.HTTPException)  # of a network, a URL, a server


def fetch_files(urls, names, sums, folder):
    """The Paths of the raw files that the URLs give: in the folder under their names, or else in
    DATA_MIRROR (a folder or a URL prefix), or else fetched into the folder. sums: their sha256, or
    None; UserError if one is another wherever the file came from, or it can't be had."""
    mirror = os.environ.get('DATA_MIRROR', '')
    missing = [url for url, name in zip(urls, names, strict=True)
               if not (folder / name).exists() and not (mirror and Path(mirror, name).exists())]
    if missing and '://' not in mirror:
        announce(missing, folder)
    return [fetch_file(url, folder / name, digest, mirror)
            for url, name, digest in zip(urls, names, sums, strict=True)]


def fetch_file(url, path, sha256, mirror):
    """The Path of one raw file: `path`, or where the mirror, a folder, has it."""
    for there in [path, Path(mirror, path.name)] if mirror else [path]:
        if there.is_file():
            check_sum(there, sha256)
            return there
    prefixed = [f'{mirror.rstrip("/")}/{path.name}'] if '://' in mirror else []
    for source in [*prefixed, url]:
        try:
            return download(source, path, sha256)
        except FAILURES as error:
            reason = f'{type(error).__name__}: {first_line(error)}'
    raise UserError(f'{url} could not be fetched ({reason}); save that file as {path}, or name a '
                    'folder that has it in DATA_MIRROR, or train without a download: '
                    f'{command("train.py", "--dataset=stdlib")}')


def announce(urls, folder):
    """Say how much is to come, where the servers tell."""
    with contextlib.suppress(*FAILURES), ThreadPoolExecutor(8) as pool:
        total = sum(pool.map(remote_size, urls))
        print(f'{len(urls):,} {"file" if len(urls) == 1 else "files"}, {total / 1e6:,.1f} MB, to '
              f'be fetched into {folder}', flush=True)


def remote_size(url):
    """How many bytes a server says that a file has, 0 if it does not."""
    request = urllib.request.Request(url, method='HEAD')
    with urllib.request.urlopen(request, timeout=10) as response:
        return int(response.headers['Content-Length'] or 0)


def download(url, path, sha256=None, attempts=5):
    """Fetch url to path, which appears only when it is whole; what came before a failure stays in
    PATH.part, with what the server calls this version of the file in PATH.version, and is not
    fetched again. Raises one of FAILURES, or UserError for a wrong sha256."""
    part, version = (path.with_name(f'{path.name}.{kind}') for kind in ('part', 'version'))
    part.parent.mkdir(parents=True, exist_ok=True)
    while True:
        known = version.exists() and version.read_text(encoding='utf-8')
        had = part.stat().st_size if known and part.exists() else 0
        try:
            receive(url, part, had, version)
            break
        except FAILURES as error:
            if getattr(error, 'code', None) == 416 and part.exists():
                part.unlink()  # nothing comes after what is there
            elif attempts <= 1 or not part.exists() or part.stat().st_size == had:
                raise
            attempts -= 1
    check_sum(part, sha256)
    os.replace(part, path)
    version.unlink()
    return path


def receive(url, part, had, version):
    """Append what is missing after `had` bytes to the file, if the server can and still has the
    version that they are of, which the file `version` names; else fetch all anew."""
    known = version.read_text(encoding='utf-8') if had else ''
    headers = {'Range': f'bytes={had}-', 'If-Range': known} if had else {}
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        refuse_page(response, part.stem)
        if response.status == 206 and version_of(response) not in ('', known):
            return receive(url, part, 0, version)  # the server knows no If-Range
        had = had if response.status == 206 else 0
        size = int(response.headers['Content-Length'] or 0)
        total = had + size if size else None
        bar = progress_bar(total=total, initial=had, desc=part.stem, unit='B', unit_scale=True)
        with bar, open(part, 'ab' if had else 'wb') as file:
            if not had:  # and the part is empty now
                version.write_text(version_of(response), encoding='utf-8')
            while block := response.read1(BLOCK):  # what has come is kept if no more does
                file.write(block)
                bar.update(len(block))
    if total and part.stat().st_size != total:
        raise OSError(f'{part.stat().st_size:,} of {total:,} bytes came')


def version_of(response):
    """What a server calls a version of a file, '' if it does not."""
    tag = response.headers['ETag'] or ''
    strong = tag.startswith('"')  # a weak one stands for versions that are only alike
    return tag if strong else response.headers['Last-Modified'] or ''


def refuse_page(response, name):
    """OSError for a web page where none was asked for, such as a network's own for a login."""
    if response.headers.get_content_type() == 'text/html' and '.htm' not in name:
        raise OSError('a web page came in place of the file')


def check_sum(path, expected):
    """UserError if the file's sha256 is not the expected one; None: any will do."""
    if not expected:
        return
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(BLOCK):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise UserError(f'{path} is not the file it should be: its sha256 is '
                        f'{digest.hexdigest()}, not {expected}; remove it to fetch it again')
