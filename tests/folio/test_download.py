"""Raw files from a web server of this machine."""

import functools
import http.server
import math
import socket
import struct
import threading
import time
from hashlib import sha256
from pathlib import Path

import pytest
from conftest import TEXT

import prepare
from folio import download
from folio.cli import UserError
from folio.tokenizer import Tokenizer

DIGEST = sha256(TEXT.encode()).hexdigest()


def read_back(name):
    """The text of both splits of a prepared data set."""
    train, val, meta = prepare.open_corpus(name)
    tokenizer = Tokenizer(meta['tokenizer'])
    return ''.join(tokenizer.decode(ids.read(0, len(ids)).tolist()) for ids in (train, val))


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves files; the rest of one where asked for, if it has `ranges` and the version is still
    the same, which it names in `header` and may not compare; it breaks off after `enough` bytes,
    with `after` them."""
    enough, asked, ranges, header, compares, kind = None, [], True, 'ETag', True, 'text/plain'
    after = staticmethod(lambda server: None)

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        Server.asked.append(self.headers['Range'])
        body = Path(self.translate_path(self.path)).read_bytes()
        version = f'"{sha256(body).hexdigest()}"'
        same = self.headers['If-Range'] == version or not Server.compares
        start = int((Server.ranges and same and self.headers['Range'] or 'bytes=0-')[6:-1])
        if start >= len(body):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header('Content-Length', str(len(body) - start))
        self.send_header('Content-Type', Server.kind)
        self.send_header(Server.header, version)
        self.end_headers()
        self.wfile.write(body[start:][:Server.enough])
        if len(body) - start > (Server.enough or math.inf):
            Server.after(self)


@pytest.fixture
def server(tmp_path_factory):
    """A web server of this machine, with the text at /book.txt: its address and its folder."""
    folder = tmp_path_factory.mktemp('web')
    (folder / 'book.txt').write_text(TEXT)
    handler = functools.partial(Server, directory=str(folder))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{web.server_port}', folder
        web.shutdown()


def recipe(home, url, **more):
    lines = [f'{name} = {value!r}' for name, value in {'url': url, **more}.items()]
    (home / 'data' / 'book.py').write_text('\n'.join(lines))
    return str(home / 'data' / 'book.py')


def test_a_recipe_is_downloaded_once_and_checked(home, server):
    url, folder = server
    prepare.main([recipe(home, f'{url}/book.txt', sha256=DIGEST)])
    assert read_back('book') == TEXT
    (folder / 'book.txt').unlink()
    prepare.main([recipe(home, f'{url}/book.txt', sha256=DIGEST)])


def test_a_download_goes_on_where_it_broke_off(home, server, monkeypatch):
    url, folder = server
    monkeypatch.setattr(Server, 'enough', 4000)
    monkeypatch.setattr(Server, 'asked', [])
    prepare.main([recipe(home, f'{url}/book.txt', sha256=DIGEST)])
    assert Server.asked == [None, *(f'bytes={n}-' for n in range(4000, len(TEXT), 4000))]


@pytest.mark.parametrize('part', [TEXT, TEXT + 'more'])
def test_a_download_that_was_whole_or_too_long_is_fetched_anew(home, server, part):
    url, _ = server
    begin(home, part)
    prepare.main([recipe(home, f'{url}/book.txt', sha256=DIGEST)])
    assert read_back('book') == TEXT


def begin(home, part, version=f'"{DIGEST}"'):
    """Leave what an earlier download left."""
    (home / 'data' / 'book').mkdir()
    (home / 'data' / 'book' / 'book.txt.part').write_text(part)
    (home / 'data' / 'book' / 'book.txt.version').write_text(version)


@pytest.mark.parametrize('compares', [True, False])
def test_two_versions_of_a_file_are_not_spliced(home, server, monkeypatch, compares):
    url, _ = server
    monkeypatch.setattr(Server, 'compares', compares)
    begin(home, 'another text, of another day' * 99, version='"another"')
    prepare.main([recipe(home, f'{url}/book.txt')])
    assert read_back('book') == TEXT
    assert not list((home / 'data' / 'book').glob('book.txt.*'))


def test_a_file_that_changes_between_two_parts_of_it_is_fetched_anew(home, server, monkeypatch):
    url, folder = server
    changed = TEXT.replace('quick', 'speedy')

    def change(server):
        (folder / 'book.txt').write_text(changed)
        Server.enough = None
    monkeypatch.setattr(Server, 'enough', 4000)
    monkeypatch.setattr(Server, 'after', change)
    prepare.main([recipe(home, f'{url}/book.txt')])
    assert read_back('book') == changed


@pytest.mark.parametrize('header', ['X-Nothing', 'Last-Modified'])
def test_without_a_version_to_name_a_download_starts_over(home, server, monkeypatch, header):
    url, _ = server
    monkeypatch.setattr(Server, 'header', header)
    monkeypatch.setattr(Server, 'enough', 9000)
    monkeypatch.setattr(Server, 'asked', [])
    path = recipe(home, f'{url}/book.txt', sha256=DIGEST)
    if header == 'Last-Modified':
        prepare.main([path])
        assert Server.asked == [None, 'bytes=9000-']
    else:
        with pytest.raises(UserError, match='9,000 of .* bytes came'):
            prepare.main([path])
        assert set(Server.asked) == {None}


def test_a_server_that_knows_no_ranges_sends_all_anew(home, server, monkeypatch):
    url, _ = server
    monkeypatch.setattr(Server, 'ranges', False)
    begin(home, TEXT[:4000])
    prepare.main([recipe(home, f'{url}/book.txt', sha256=DIGEST)])
    assert read_back('book') == TEXT


def test_a_server_that_sends_nothing_is_asked_once(home, server, monkeypatch):
    url, _ = server
    monkeypatch.setattr(Server, 'enough', 0)
    monkeypatch.setattr(Server, 'asked', [])
    with pytest.raises(UserError, match='book.txt could not be fetched'):
        prepare.main([recipe(home, f'{url}/book.txt')])
    assert Server.asked == [None]


def test_several_urls_or_the_first_of_them_are_documents(home, server):
    url, folder = server
    (folder / 'second.txt').write_text('the second\n' * 9)
    second = sha256((folder / 'second.txt').read_bytes()).hexdigest()
    path = recipe(home, [f'{url}/book.txt', f'{url}/second.txt'], sha256=[DIGEST, second])
    prepare.main([path, '--tokenizer=byte'])
    assert read_back('book') == TEXT + 'the second\n' * 9
    prepare.main([path, '--max_files=1'])
    assert read_back('book') == TEXT


def test_a_mirror_is_a_folder_or_a_url(home, server, monkeypatch):
    url, folder = server
    for mirror in (url, str(folder)):
        monkeypatch.setenv('DATA_MIRROR', mirror)
        for path in (home / 'data').glob('book/*'):
            path.unlink()
        prepare.main([recipe(home, 'http://127.0.0.1:9/other.txt', file='book.txt', sha256=DIGEST)])
        assert read_back('book') == TEXT


def test_a_wrong_checksum_is_refused_wherever_the_file_came_from(home, server):
    url, folder = server
    path = recipe(home, f'{url}/book.txt', sha256='0' * 64)
    with pytest.raises(UserError, match=f'{DIGEST}, not 000'):
        prepare.main([path])
    assert not (home / 'data' / 'book' / 'book.txt').exists()
    (home / 'data' / 'book' / 'book.txt').write_text(TEXT)
    with pytest.raises(UserError, match=f'{DIGEST}, not 000'):
        prepare.main([path])


def test_without_a_network_the_line_names_the_url_the_place_and_the_way_out(home):
    with pytest.raises(UserError) as error:
        prepare.main([recipe(home, 'http://127.0.0.1:9/book.txt')])
    for part in ('http://127.0.0.1:9/book.txt', str(home / 'data' / 'book' / 'book.txt'), 'stdlib'):
        assert part in str(error.value)


@pytest.mark.parametrize('trouble', ['stall', 'reset'])
def test_a_connection_that_stalls_or_is_reset_is_taken_up_again(home, server, monkeypatch, trouble):
    def reset(server):
        linger = struct.pack('ii', 1, 0)  # close it without a goodbye
        server.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        server.connection.close()
    url, _ = server
    monkeypatch.setattr(download, 'TIMEOUT', 0.3)
    monkeypatch.setattr(Server, 'enough', 6000)
    monkeypatch.setattr(Server, 'asked', [])
    after = reset if trouble == 'reset' else lambda server: time.sleep(1)
    monkeypatch.setattr(Server, 'after', after)
    prepare.main([recipe(home, f'{url}/book.txt', sha256=DIGEST)])
    assert read_back('book') == TEXT and len(Server.asked) >= 3


def test_a_web_page_in_place_of_the_file_is_one_line(home, server, monkeypatch):
    url, folder = server
    (folder / 'book.txt').write_text('<html>Please log in</html>')
    monkeypatch.setattr(Server, 'kind', 'text/html; charset=utf-8')
    with pytest.raises(UserError, match='a web page came in place of the file'):
        prepare.main([recipe(home, f'{url}/book.txt')])
    assert not list((home / 'data').glob('book/*'))


def test_a_page_that_is_asked_for_is_fetched(home, server, monkeypatch):
    url, folder = server
    (folder / 'book.html').write_text(TEXT)
    monkeypatch.setattr(Server, 'kind', 'text/html')
    prepare.main([recipe(home, f'{url}/book.html')])
    assert read_back('book') == TEXT


@pytest.mark.parametrize('code', [301, 404, 416, 500])
def test_an_answer_without_a_file_is_one_line(home, server, monkeypatch, code):
    def answer(self):
        self.send_response(code)
        self.send_header('Location', self.path)
        self.send_header('Content-Length', '0')
        self.end_headers()
    url, _ = server
    monkeypatch.setattr(Server, 'do_GET', answer)
    begin(home, TEXT[:4000])
    with pytest.raises(UserError, match=f'could not be fetched .*{code}') as error:
        prepare.main([recipe(home, f'{url}/book.txt')])
    assert '\n' not in str(error.value)
