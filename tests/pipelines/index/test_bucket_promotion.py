"""`CURRENT` in Cloud Storage: Google's client against a server on this machine that honours preconditions.

The emulator of test_gcs.py ignores them. This server has the few requests of the JSON API that one object needs.
"""

import email
import http.server
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from pipelines.index import current
from pipelines.index.current import Current, MovedError, locked, move, read

URI = 'gs://anonymous@shop/index/CURRENT'


class OneBucket(http.server.BaseHTTPRequestHandler):
    """Objects as (generation, content); answers 412 where a request's ifGenerationMatch is not the generation."""

    protocol_version = 'HTTP/1.1'

    def do_GET(self):
        url = urlsplit(self.path)
        if self.server.forbidden:
            self.answer(403, b'{"error": {"code": 403, "message": "not yours"}}')
            return
        name = unquote(url.path.rpartition('/o/')[2])
        media = parse_qs(url.query).get('alt') == ['media']
        with self.server.lock:
            if media:
                self.server.before_look()
            generation, content = self.server.objects.get(name, (0, None))
        if content is None:
            self.answer(404, b'{"error": {"code": 404, "message": "no such object"}}')
        elif not self.matches(url, generation):
            self.answer(412, b'{"error": {"code": 412, "message": "conditionNotMet"}}')
        elif media:
            self.answer(200, content)
        else:
            self.answer(200, self.described(name, generation, content))

    def do_POST(self):
        body = self.rfile.read(int(self.headers['content-length']))
        message = email.message_from_bytes(b'Content-Type: ' + self.headers['content-type'].encode() + b'\n\n' + body)
        metadata, media = (part.get_payload(decode=True) for part in message.get_payload())
        name = json.loads(metadata)['name']
        with self.server.lock:
            found = self.server.objects.get(name, (0, None))[0]
            matches = self.matches(urlsplit(self.path), found)
            if matches:
                self.server.generation += 1
                self.server.objects[name] = self.server.generation, media
        if not matches:
            self.answer(412, b'{"error": {"code": 412, "message": "conditionNotMet"}}')
        elif self.server.lose_answers:
            self.server.lose_answers -= 1
            self.answer(503, b'{"error": {"code": 503, "message": "try again"}}')
        else:
            self.answer(200, self.described(name, *self.server.objects[name]))

    @staticmethod
    def matches(url, generation):
        return parse_qs(url.query).get('ifGenerationMatch', [str(generation)]) == [str(generation)]

    @staticmethod
    def described(name, generation, content):
        about = {'bucket': 'shop', 'name': name, 'generation': str(generation), 'size': str(len(content))}
        return json.dumps(about).encode()

    def answer(self, status, content):
        self.send_response(status)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), OneBucket)
    server.daemon_threads = True
    server.lock, server.objects, server.generation, server.lose_answers = threading.Lock(), {}, 100, 0
    server.before_look, server.forbidden = (lambda: None), False
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv('STORAGE_EMULATOR_HOST', f'http://127.0.0.1:{server.server_port}')
    yield server
    server.shutdown()
    server.server_close()


def test_the_first_version_is_served_and_the_next_replaces_it(server):
    assert read(URI) == Current(None, 0)
    move(URI, 'v1', read(URI))
    assert server.objects == {'index/CURRENT': (101, b'v1\n')}
    assert read(URI) == Current('v1', 101)
    move(URI, 'v2', read(URI))
    assert read(URI) == Current('v2', 102)


def test_what_moves_between_the_two_requests_of_a_look_is_looked_at_again(server):
    move(URI, 'v1', read(URI))

    def overwrite():
        server.before_look = lambda: None
        server.objects['index/CURRENT'] = 200, b'v2\n'

    server.before_look = overwrite
    assert read(URI) == Current('v2', 200)


def test_of_many_that_believe_the_same_one_wins(server):
    def attempt(name):
        try:
            with locked(URI):  # which locks nothing in a bucket
                move(URI, name, believed)
        except MovedError as e:
            return e.found
        return None

    for _ in range(2):
        believed, names = read(URI), [f'{len(server.objects)}-{server.generation}-{i}' for i in range(8)]
        with ThreadPoolExecutor(8) as pool:
            found = dict(zip(names, pool.map(attempt, names), strict=True))
        (winner,) = [name for name, other in found.items() if other is None]
        assert read(URI).text == winner
        assert {other for name, other in found.items() if name != winner} == {read(URI)}


def test_the_same_text_in_another_generation_is_another_state(server):
    """Someone rolled forth and back: on a disk nobody could tell, here one can."""
    move(URI, 'v1', read(URI))
    believed = read(URI)
    move(URI, 'v2', read(URI))
    move(URI, 'v1', read(URI))
    with pytest.raises(MovedError):
        move(URI, 'v3', believed)


def test_only_the_server_can_tell_what_happened_since_the_look(server, monkeypatch):
    """Between the look of a move and its write another write comes in: the precondition stops it."""
    move(URI, 'v1', read(URI))
    believed, look = read(URI), current.read

    def look_then_lose(uri):
        found = look(uri)
        server.generation += 1
        server.objects['index/CURRENT'] = server.generation, b'other\n'
        return found

    monkeypatch.setattr(current, 'read', look_then_lose)
    with pytest.raises(MovedError) as raised:
        move(URI, 'v2', believed)
    assert raised.value.found == Current('other', server.generation)
    assert server.objects['index/CURRENT'][1] == b'other\n'


def test_a_write_whose_answer_is_lost_counts(server):
    """The client repeats it, the repetition does not match any more, and what is served is our own."""
    believed = read(URI)
    server.lose_answers = 1
    move(URI, 'v1', believed)
    assert server.objects['index/CURRENT'] == (101, b'v1\n')
    move(URI, 'v1', believed)  # the whole step again
    assert server.objects['index/CURRENT'] == (101, b'v1\n')


def test_a_bucket_that_cannot_be_asked_is_told_as_a_file(server):
    server.objects['index/CURRENT'] = 100, b'v1\n'
    server.forbidden = True
    for attempt in (lambda: read(URI), lambda: move(URI, 'v2', Current('v1', 100))):
        with pytest.raises(OSError, match=r'^gs://anonymous@shop/index/CURRENT: Forbidden: .*not yours'):
            attempt()
