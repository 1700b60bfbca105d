"""Dataflow's API on loopback: a job that is submitted is run, from what was staged, by `run_staged.py` elsewhere."""

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

WORKER = Path(__file__).with_name('run_staged.py')
JOB_SECONDS = 120
CANCELLED, CANCELLED_NUMBER = 'JOB_STATE_CANCELLED', 5  # clients send numbers


class FakeDataflow:
    """The requests of a job's life: create, get, messages, metrics; and cancel.

    Args:
        folder: where the workers run; the project's source is not there.

    Attributes:
        jobs: all jobs, in the order submitted.
        has_workers: whether jobs are run; else they stay as if they waited for machines.
    """

    def __init__(self, folder):
        self.folder = folder
        self.jobs = []
        self.has_workers = True
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self):
                body = self.rfile.read(int(self.headers.get('content-length', 0)))
                content = json.dumps(service.answer(self.command, self.path.split('?')[0], body)).encode()
                self.send_response(200)
                self.send_header('Content-Type', 'application/json')
                self.send_header('Content-Length', str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = answer

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()

    @property
    def endpoint(self):
        return f'http://localhost:{self.server.server_port}'

    def answer(self, method, path, body):
        if method == 'POST' and path.endswith('/jobs'):
            self.jobs.append(Job(json.loads(body), len(self.jobs), self.folder))
            if self.has_workers:
                threading.Thread(target=self.jobs[-1].run, daemon=True).start()
            return self.jobs[-1].described()
        job = self.jobs[int(re.search(r'/jobs/[^/]*-(\d+)', path)[1])]
        if method == 'PUT':
            job.state = CANCELLED if json.loads(body)['requestedState'] == CANCELLED_NUMBER else 'JOB_STATE_UNKNOWN'
        if path.endswith('/messages'):
            return {'jobMessages': job.messages}
        return {'metrics': job.metrics} if path.endswith('/metrics') else job.described()


class Job:
    """One job: what was submitted, its state, messages and counters, and the file that the workers' code came from."""

    def __init__(self, submitted, number, folder):
        self.submitted = submitted
        self.number = number
        self.folder = folder / f'job-{number}'
        self.state = 'JOB_STATE_PENDING'
        self.metrics, self.messages, self.code = [], [], None

    def described(self):
        about = {'id': f'2026-01-01_00_00_00-{self.number}', 'projectId': 'offline', 'location': 'us-central1'}
        return {**about, 'name': self.submitted['name'], 'currentState': self.state}

    def run(self):
        """Run the pipeline that the job's description names, as a worker would that has Beam and the requirements."""
        self.state = 'JOB_STATE_RUNNING'
        done = run_job(self.submitted, self.folder)
        if done.returncode:
            text = {'messageText': done.stderr, 'messageImportance': 'JOB_MESSAGE_ERROR', 'id': '1'}
            self.messages = [{**text, 'time': '2026-01-01T00:00:00Z'}]
            self.state = 'JOB_STATE_FAILED'
            return
        said = json.loads(done.stdout.splitlines()[-1])
        self.metrics, self.code = said['metrics'], said['code']
        self.state = 'JOB_STATE_DONE'


def run_job(description, folder):
    """Run a job that Dataflow's API, or a template, describes."""
    folder.mkdir(parents=True)
    uri = staged_pipeline(description)
    return subprocess.run(
        [sys.executable, str(WORKER), uri, str(folder)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=JOB_SECONDS,
        env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '2'},
        check=False,
    )


def staged_pipeline(description):
    """Where a job's description says that the pipeline is."""
    (uri,) = set(re.findall(r'gs://[^"]*/pipeline\.pb', json.dumps(description)))
    return uri
