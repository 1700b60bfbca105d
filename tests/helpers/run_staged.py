"""Plays Dataflow's workers: runs a staged pipeline as it is, in this process, without knowing who submitted it.

    python tests/run_staged.py gs://BUCKET/.../pipeline.pb FOLDER

Staged packages are installed into FOLDER first and imported from there. Prints the counters as Dataflow's API tells
them, in JSON, and where the code came from; a failed job ends with its traceback and code 1.
"""

import json
import subprocess
import sys
from pathlib import Path

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.transforms import environments


def read(path):
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        return file.read()


def staged_packages(environment, folder):
    """Names and contents of what the job wants installed, as Beam's boot finds them; requirements are in the image."""
    for artifact in environment.dependencies:
        name = beam_runner_api_pb2.ArtifactStagingToRolePayload.FromString(artifact.role_payload).staged_name
        url = beam_runner_api_pb2.ArtifactUrlPayload.FromString(artifact.type_payload).url
        if name.endswith('.tar.gz'):
            (folder / name).write_bytes(read(url))
            yield folder / name


def install(packages, folder):
    pip = (sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-build-isolation', '--target', folder)
    subprocess.run([*map(str, pip), *map(str, packages)], check=True, stdout=sys.stderr)
    sys.path.insert(0, str(folder))


def counters_of(result):
    """Each counter twice: as told while the job runs, and committed."""
    for counter in result.metrics().query()['counters']:
        name = counter.key.metric
        for tentative in ({'tentative': 'true'}, {}):
            context = {'namespace': name.namespace, 'step': counter.key.step, **tentative}
            yield {'name': {'origin': 'user', 'name': name.name, 'context': context}, 'scalar': counter.committed or 0}


def main(uri, folder):
    pipeline = beam_runner_api_pb2.Pipeline.FromString(read(uri))
    here = environments.EmbeddedPythonEnvironment.default().to_runner_api(None)
    for environment in pipeline.components.environments.values():
        packages = list(staged_packages(environment, folder))
        if packages:
            install(packages, folder)
        environment.urn, environment.payload = here.urn, here.payload
        del environment.dependencies[:]
    result = fn_runner.FnApiRunner().run_via_runner_api(pipeline, PipelineOptions([]))
    result.wait_until_finish()
    import pipelines

    print(json.dumps({'metrics': list(counters_of(result)), 'code': pipelines.__file__}))


if __name__ == '__main__':
    main(sys.argv[1], Path(sys.argv[2]))
