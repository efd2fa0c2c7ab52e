"""Files from the network: resumed where they broke off, checked, and there only when whole.

    path = download('https://example.org/book.txt', Path('data/book/book.txt'))
"""

import hashlib
import http.client
import os
import urllib.request
from pathlib import Path

from folio.cli import UserError, first_line, progress_bar
from folio.options import command

BLOCK, TIMEOUT = 1 << 20, 30  # bytes; seconds without a byte
FAILURES = (OSError, ValueError, http.client.HTTPException)  # of a network, a URL, a server


def fetch_file(url, path, sha256=None):
    """The Path of a raw file: `path`, if it is there, or where DATA_MIRROR, a folder, has it; else
    it is fetched: from DATA_MIRROR, if that is the beginning of a URL, or from its own. UserError
    if it can't be had, or has another sha256 than a given one, wherever it came from."""
    mirror = os.environ.get('DATA_MIRROR') or str(path.parent)
    for there in (path, Path(mirror, path.name)):
        if there.is_file():
            check_sum(there, sha256)
            return there
    sources = [f'{mirror.rstrip("/")}/{path.name}', url] if '://' in mirror else [url]
    for source in sources:
        try:
            return download(source, path, sha256)
        except FAILURES as error:
            reason = f'{type(error).__name__}: {first_line(error)}'
    raise UserError(f'{url} could not be fetched ({reason}); save that file as {path}, or name a '
                    'folder that has it in DATA_MIRROR, or train without a download: '
                    f'{command("train.py", "--dataset=stdlib")}')


def download(url, path, sha256=None):
    """Fetch url to path, which appears only when it is whole; what came before a failure stays in
    PATH.part, with what the server calls this version of the file in PATH.version, and is not
    fetched again. Raises one of FAILURES, or UserError for a wrong sha256."""
    part, version = (path.with_name(f'{path.name}.{kind}') for kind in ('part', 'version'))
    part.parent.mkdir(parents=True, exist_ok=True)
    print(f'fetching {url}', flush=True)
    while True:
        had = size_of(part)
        try:
            receive(url, part, version)
            break
        except FAILURES as error:
            if getattr(error, 'code', None) == 416 and had:
                part.unlink()  # nothing comes after what is there
            elif size_of(part) <= had:
                raise
    check_sum(part, sha256)
    os.replace(part, path)
    version.unlink()
    return path


def size_of(path):
    """The bytes of a file, 0 if there is none."""
    return path.stat().st_size if path.exists() else 0


def receive(url, part, version):
    """Append what is missing to the file `part`, if the server can and still has the version that
    the file `version` names; else fetch all anew."""
    known = version.read_text(encoding='utf-8') if version.exists() else ''
    had = size_of(part) if known else 0
    headers = {'Range': f'bytes={had}-', 'If-Range': known} if had else {}
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        if response.headers.get_content_type() == 'text/html' and '.htm' not in part.stem:
            raise OSError('a web page came in place of the file')  # a network's, for a login
        if response.status == 206 and version_of(response) not in ('', known):
            version.unlink()  # the server knows no If-Range
            return receive(url, part, version)
        append(response, part, had if response.status == 206 else 0, version)


def append(response, part, had, version):
    """Write a response after the first `had` bytes of the file `part`; OSError if it is cut."""
    total = had + int(response.headers['Content-Length'] or 0)
    bar = progress_bar(total=total, initial=had, desc=part.stem, unit='B', unit_scale=True)
    with bar, open(part, 'ab' if had else 'wb') as file:
        if not had:  # and the part is empty now
            version.write_text(version_of(response), encoding='utf-8')
        while block := response.read1(BLOCK):  # what has come is kept if no more does
            file.write(block)
            bar.update(len(block))
    if size_of(part) < total:
        raise OSError(f'{size_of(part):,} of {total:,} bytes came')


def version_of(response):
    """What a server calls a version of a file, '' if it does not."""
    return response.headers['ETag'] or response.headers['Last-Modified'] or ''


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
