"""A bucket of an emulator of Cloud Storage on loopback, for tests; nothing here leaves the machine."""

import contextlib
import http.server
import json
import socket
import subprocess
import sys
import threading
import time

import pytest

PROJECT = 'offline'


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def wait_for(port, seconds=20):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(('127.0.0.1', port), 0.2):
            return
        time.sleep(0.1)
    raise TimeoutError(f'nothing listens on port {port} after {seconds} s')


class GivesTokens(http.server.BaseHTTPRequestHandler):
    """Answers every request for an access token, so that clients need not wait for a network."""

    def do_POST(self):
        self.rfile.read(int(self.headers.get('content-length', 0)))
        answer = json.dumps({'access_token': 'none', 'expires_in': 3600, 'token_type': 'Bearer'}).encode()
        self.send_response(200)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


def write_service_account(path, token_port):
    """Credentials that no one has issued; with them clients do not search for others."""
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(65537, 2048)
    account = {
        'type': 'service_account',
        'project_id': PROJECT,
        'private_key_id': 'none',
        'private_key': key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()).decode(),
        'client_email': f'tests@{PROJECT}.example',
        'client_id': '1',
        'token_uri': f'http://127.0.0.1:{token_port}/token',
    }
    path.write_text(json.dumps(account))


@contextlib.contextmanager
def emulated_bucket(folder):
    """An empty bucket; Beam's and Arrow's clients find it through environment variables, subprocesses' too."""
    port = free_port()
    tokens = http.server.ThreadingHTTPServer(('127.0.0.1', 0), GivesTokens)
    threading.Thread(target=tokens.serve_forever, daemon=True).start()
    write_service_account(folder / 'account.json', tokens.server_port)
    emulator = subprocess.Popen(
        [sys.executable, '-m', 'gcp_storage_emulator', 'start', '--host=127.0.0.1', f'--port={port}', '--in-memory'],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(port)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {
                'STORAGE_EMULATOR_HOST': f'http://127.0.0.1:{port}',  # Google's Python client, and so Beam
                'CLOUD_STORAGE_EMULATOR_ENDPOINT': f'http://127.0.0.1:{port}',  # Google's C++ client, and so Arrow
                'GOOGLE_APPLICATION_CREDENTIALS': str(folder / 'account.json'),
                'GOOGLE_CLOUD_PROJECT': PROJECT,
                'NO_GCE_CHECK': 'true',
                'GCE_METADATA_HOST': '127.0.0.1:1',
                'GOOGLE_AUTH_TRUST_BOUNDARY_ENABLED': 'false',  # else asks another host about the account
            }.items():
                patch.setenv(name, value)
            from google.auth.credentials import AnonymousCredentials
            from google.cloud import storage

            yield storage.Client(project=PROJECT, credentials=AnonymousCredentials()).create_bucket('shop')
    finally:
        emulator.terminate()
        emulator.wait(10)
        tokens.shutdown()


def upload(bucket, folder, to):
    """Put the files of a local folder into the bucket."""
    for path in sorted(folder.rglob('*')):
        if path.is_file():
            bucket.blob(f'{to}/{path.relative_to(folder)}').upload_from_filename(str(path))


def names_in(bucket, prefix):
    return sorted(blob.name.removeprefix(prefix) for blob in bucket.client.list_blobs('shop', prefix=prefix))
