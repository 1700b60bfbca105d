"""What is in deploy/dataflow: templates, requirements, image, scripts, Terraform, and the package to install."""

import doctest
import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools  # noqa: F401  (brings distutils)
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hashing_model.codes.spec import CodeSpec
from pipelines.cli.arguments import make_parser
from pipelines.jobs.runner import pipeline_options
from tests.helpers.make_index import ROOT, build_by_hand, make_codes

DEPLOY = ROOT / 'deploy' / 'dataflow'
sys.path.insert(0, str(DEPLOY))
import launch  # noqa: E402
from launch import command_line, options_of  # noqa: E402

TEMPLATES = ('build', 'query')
# Told when the job has ended, which no template waits for; and what comes from files of the machine that starts it.
NOT_ON_DATAFLOW = {'explain', 'metrics_file', 'json', 'config', 'print_config'}
REFUSED = {
    'index': ('index', 'gs://b', 'gs://bucket', 'gs://bucket/', 'gs://bucket/index/', 'gs://bucket/*', 's3://bucket/i'),
    'images': ('photos', 'gs://bucket', 'gs://bucket/a,', 'gs://bucket/a,b', ',gs://bucket/a'),
    'codes': ('codes.parquet', 'gs://bucket/a,/b'),
    'model': ('model', 'gs://bucket/a,gs://bucket/b', 'gs://bucket/model/'),
    'text': ('red shoes,', ',a cat', ' '),
    'texts': ('searches.txt', 'gs://bucket/*.txt'),
    'ids': ('ids.txt', 'gs://bucket/*.txt'),
    'output': ('answers.parquet', 'gs://bucket/answers', 'gs://bucket/answers.csv', 'gs://bucket/answers.parquet.gz'),
    'segments': ('coarse', 'coarse=', '=32', 'Coarse=32', 'coarse=32,', 'coarse=-1'),
    'profile': ('coarse', 'coarse=0.5', 'coarse=1;fine=2'),
    'partition_rows': ('0', '-1', '1e6', '2,000'),
    'keep': ('0', '-1', 'all', '1.5'),
    'k': ('0', '-1', 'many', 'all of them'),
    'radius': ('-1', '1.5', 'far'),
    'full': ('yes', '1'),
    'no_gate': ('no', 'TRUE'),
    **dict.fromkeys(
        ('max_reject_rate', 'max_fewer_rows', 'max_equal_codes', 'max_map_loss'), ('2', '-0.1', '5%', '.5')
    ),
    'min_entropy': ('-1', 'low', '1e3'),
    'image_field': ('jpg,png', ' jpg'),
    'id_field': ('a,b',),
    'caption_field': ('a,b',),
    'labels': ('a,', ',a', 'a,,b'),
    'labels_from': ('files', 'folder'),
    'sdk_container_image': ('grainhash', 'region-docker.pkg.dev/p/grainhash/grainhash', 'grainhash:1'),
    'number_of_worker_harness_threads': ('0', '-2', 'two', '1000'),
    'dataflow_service_options': ('two words', 'a=b,c=d', '=gpu'),
    'verbose': ('yes', 'True '),
}
PROJECT_ROLES = {'roles/dataflow.worker', 'roles/dataflow.developer'}  # those that reach beyond one bucket or account


def metadata(template):
    return json.loads((DEPLOY / f'metadata-{template}.json').read_text())


def parameters_of(template):
    return metadata(template)['parameters']


def example_of(parameter):
    return re.search(r'Example: `(.+)`$', parameter['helpText'])[1]


EVERY = [pytest.param(p, id=f'{t}-{p["name"]}') for t in TEMPLATES for p in parameters_of(t)]


@pytest.mark.parametrize('parameter', EVERY)
def test_a_parameter_is_described_and_takes_its_example_and_no_nonsense(parameter):
    assert parameter['label']
    assert parameter['paramType'] in ('TEXT', 'GCS_READ_FILE', 'GCS_WRITE_FILE')
    (regex,) = parameter['regexes']
    assert regex.startswith('^')
    assert regex.endswith('$')
    assert re.fullmatch(regex, example_of(parameter))
    for nonsense in ('', '\n', *REFUSED[parameter['name']]):
        assert not re.fullmatch(regex, nonsense), nonsense


@pytest.mark.parametrize('template', TEMPLATES)
def test_parameters_are_the_options_of_the_command_and_some_of_beam(template):
    names = [p['name'] for p in parameters_of(template)]
    assert len(set(names)) == len(names)
    known = options_of(template)
    assert set(known) - set(names) == NOT_ON_DATAFLOW & set(known)
    for parameter in parameters_of(template):
        if parameter['name'] in known:
            required = known[parameter['name']].required
            assert parameter['isOptional'] is not required
        else:
            pipeline_options([f'--{parameter["name"]}={example_of(parameter)}'])  # refuses what Beam does not know


@pytest.mark.parametrize('template', TEMPLATES)
def test_examples_make_a_command_line(template):
    others = ('codes', 'ids', 'text', 'texts', 'no_gate')  # what does not go with the rest
    given = {p['name']: example_of(p) for p in parameters_of(template) if p['name'] not in others}
    words = command_line([f'--{name}={value}' for name, value in given.items()])
    args, rest = make_parser().parse_known_args(words)
    assert args.command == template
    assert args.images == given['images'].split(',')
    assert (args.index, args.model, args.labels) == (given['index'], given['model'], given['labels'])
    assert args.verbose
    options = pipeline_options([*rest, '--runner=DataflowRunner']).get_all_options()
    assert options['sdk_container_image'] == given['sdk_container_image']
    assert options['number_of_worker_harness_threads'] == 2
    assert options['dataflow_service_options'] == [given['dataflow_service_options']]


def test_texts_of_a_template_stay_texts():
    given = {p['name']: example_of(p) for p in parameters_of('query') if p['name'] in ('index', 'text', 'output')}
    for value, texts in ((given['text'], ['red shoes', 'a cat']), ('red, --radius=3,-h', ['red', '--radius=3', '-h'])):
        words = command_line([f'--{name}={value}' for name, value in {**given, 'text': value}.items()])
        args, rest = make_parser().parse_known_args(words)
        assert (args.text, args.radius, rest) == (texts, None, [])


def test_the_examples_of_the_launcher():
    found = doctest.testmod(launch)
    assert found.attempted == 4
    assert found.failed == 0


# The image


def pins(name):
    """Name -> version of a requirements file, all of them with hashes."""
    found = {}
    for block in re.split(r'\n(?=\S)', (DEPLOY / name).read_text()):
        match = re.match(r'([\w.-]+)(?:\[[\w,-]+\])?==(\S+)', block)
        if match:
            assert '--hash=sha256:' in block, block
            found[canonicalize_name(match[1])] = match[2]
    return found


def requirements(*extras):
    """What setup.py asks for on the image's Python."""
    from distutils.core import run_setup

    setup = run_setup(str(ROOT / 'setup.py'), stop_after='init')
    texts = (*setup.install_requires, *(r for e in extras for r in setup.extras_require[e]))
    on = {'python_version': re.search(r'^FROM python:(3\.\d+)', (DEPLOY / 'Dockerfile').read_text(), re.MULTILINE)[1]}
    return [r for r in map(Requirement, texts) if r.marker is None or r.marker.evaluate(on)]


@pytest.mark.parametrize(('name', 'extras'), [('requirements.txt', ()), ('requirements-gpu.txt', ('gpu',))])
def test_pinned_requirements_satisfy_the_package(name, extras):
    pinned = pins(name)
    assert len(pinned) > 100
    for requirement in requirements(*extras):
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f'{requirement}: {version} is pinned'
    assert any(package.startswith('nvidia-cudnn') for package in pinned) == bool(extras)


def test_both_requirements_agree():
    plain, gpu = pins('requirements.txt'), pins('requirements-gpu.txt')
    assert plain.items() <= gpu.items()


def dockerfile():
    """Instructions and what they are given, one line each."""
    text = re.sub(r'\\\n\s*', '', (DEPLOY / 'Dockerfile').read_text())
    return [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith('#')]


def test_the_image_has_the_pinned_beam_and_only_what_it_may():
    assert ['ARG', f'BEAM_VERSION={pins("requirements.txt")["apache-beam"]}'] in dockerfile()
    allowed = [line for line in (ROOT / '.dockerignore').read_text().splitlines() if line.startswith('!')]
    copies = [words.split()[:-1] for what, words in dockerfile() if what == 'COPY' and '--from' not in words]
    sources = [name.replace('${REQUIREMENTS}', 'requirements*.txt') for names in copies for name in names]
    assert sorted(f'!{name}' for name in sources) == sorted(allowed)
    assert all(list(ROOT.glob(name)) for name in sources)


def tool(name):
    """A tool that came with a Python package, or is on the path."""
    path = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if path is None:
        pytest.skip(f'{name} is not installed')
    return path


def check(*command, **more):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_dockerfile_passes_hadolint():
    assert check(tool('hadolint'), DEPLOY / 'Dockerfile') == ''


def test_scripts_pass_shellcheck():
    assert check(tool('shellcheck'), DEPLOY / 'submit.sh', DEPLOY / 'entrypoint.sh') == ''


def submitted(tmp_path, *command):
    """The command lines that submit.sh runs, by a program that only notes what it is given."""
    note = tmp_path / 'note.sh'
    note.write_text('#!/bin/sh\nprintf "%s\\n" "$@" "" >> "$0.args"\n')
    note.chmod(0o755)
    settings = {
        'PROJECT': 'my-project',
        'REGION': 'europe-west4',
        'BUCKET': 'my-bucket',
        'IMAGE': 'host/repo/grainhash:1',
    }
    programs = dict.fromkeys(('GCLOUD', 'DOCKER', 'GRAINHASH'), str(note))
    check('bash', DEPLOY / 'submit.sh', *command, env={'PATH': '/usr/bin:/bin', **settings, **programs})
    return [lines.split('\n') for lines in Path(f'{note}.args').read_text().rstrip('\n').split('\n\n')]


def test_submit_runs_a_command_on_dataflow(tmp_path):
    given = ('--images', 'gs://b/1.tar', 'gs://b/2.tar', '--model', 'gs://b/m', '--index', 'gs://b/i')
    (words,) = submitted(tmp_path, 'run', 'build', *given)
    args, rest = make_parser().parse_known_args(words)
    assert (args.command, args.images, args.index) == ('build', ['gs://b/1.tar', 'gs://b/2.tar'], 'gs://b/i')
    options = pipeline_options(rest).get_all_options(drop_default=True)
    assert options['runner'] == 'DataflowRunner'
    assert options['sdk_container_image'] == 'host/repo/grainhash:1'
    assert options['temp_location'].startswith('gs://my-bucket/dataflow/')


def test_submit_launches_a_template(tmp_path):
    (words,) = submitted(tmp_path, 'template', 'query', 'index=gs://b/i', 'images=gs://b/1.tar,gs://b/2.tar')
    assert words[:3] == ['dataflow', 'flex-template', 'run']
    assert '--template-file-gcs-location=gs://my-bucket/templates/query.json' in words
    (parameters,) = [word for word in words if word.startswith('--parameters=')]
    assert parameters == (
        '--parameters=^~^sdk_container_image=host/repo/grainhash:1~index=gs://b/i~images=gs://b/1.tar,gs://b/2.tar'
    )


def test_submit_builds_and_pushes_the_image(tmp_path):
    build, push = submitted(tmp_path, 'image', 'requirements-gpu.txt')
    assert build[0] == 'build'
    assert 'REQUIREMENTS=requirements-gpu.txt' in build
    assert Path(build[-1]).resolve() == ROOT
    assert push == ['push', 'host/repo/grainhash:1']


# Terraform


def bare(value):
    """Parsed HCL without the quotes of strings and the marks of blocks."""
    if isinstance(value, dict):
        return {bare(k): bare(v) for k, v in value.items() if k != '__is_block__'}
    if isinstance(value, list):
        return [bare(v) for v in value]
    return value.strip('"') if isinstance(value, str) else value


@pytest.fixture(scope='module')
def terraform():
    """Kind of block -> all blocks of that kind."""
    hcl2 = pytest.importorskip('hcl2')
    found = {}
    for path in sorted((DEPLOY / 'terraform').glob('*.tf')):
        for kind, blocks in bare(hcl2.loads(path.read_text())).items():
            found.setdefault(kind, []).extend(blocks)
    return found


def resources(terraform, kind):
    return {name: r for block in terraform['resource'] for name, r in block.get(kind, {}).items()}


def test_variables_are_described_and_used(terraform):
    declared = {name: about for block in terraform['variable'] for name, about in block.items()}
    assert all(about['description'].endswith('.') and about['type'] for about in declared.values())
    text = ''.join(path.read_text() for path in (DEPLOY / 'terraform').glob('*.tf') if path.name != 'variables.tf')
    assert set(re.findall(r'\bvar\.(\w+)', text)) == set(declared)


def test_no_rule_deletes_what_is_served(terraform):
    bucket = resources(terraform, 'google_storage_bucket')['index']
    assert bucket['versioning'] == [{'enabled': True}]
    rules = [r for r in bucket['lifecycle_rule'] if r['action'] == [{'type': 'Delete'}]]
    assert len(rules) == 2
    for rule in rules:
        (condition,) = rule['condition']
        archived = condition['with_state'] == 'ARCHIVED'
        assert archived or all(p.startswith('dataflow/') for p in condition['matches_prefix'])


def test_accounts_have_no_more_roles_than_they_need(terraform):
    roles = {r['role'] for r in resources(terraform, 'google_project_iam_member').values()}
    assert roles == PROJECT_ROLES
    text = (DEPLOY / 'terraform' / 'main.tf').read_text()
    assert not re.search(r'roles/(owner|editor|viewer|storage\.admin)\b', text)
    assert 'google_service_account_key' not in text


def test_the_nightly_build_gives_parameters_that_the_template_has(terraform):
    body = resources(terraform, 'google_cloud_scheduler_job')['build']['http_target'][0]['body']
    given = re.search(r'parameters *[=:] *"?\$?\{?merge\(\{(.*?)\}, *local', body.replace('\n', ' '))[1]
    names = set(re.findall(r'(\w+) *[=:] ', given))
    parameters = {p['name']: p for p in parameters_of('build')}
    assert {'index', 'images', 'model', 'sdk_container_image'} <= names <= set(parameters)
    assert {name for name, p in parameters.items() if not p['isOptional']} <= names


def test_the_alert_waits_for_what_a_build_logs(terraform, tmp_path, caplog):
    wanted = resources(terraform, 'google_logging_metric')['served']['filter']
    with caplog.at_level(logging.INFO, 'pipelines'):
        build_by_hand(
            tmp_path / 'index', [make_codes('uniform', 100, CodeSpec.parse('code=16'))], CodeSpec.parse('code=16')
        )
    (said,) = [r.getMessage() for r in caplog.records if 'is served' in r.getMessage()]
    assert said.startswith(f'{tmp_path}/index: ')
    assert 'is served' in wanted
    assert 'gs://${var.bucket}/${var.index}' in wanted


def test_terraform_is_formatted():
    check(tool('terraform'), 'fmt', '-check', '-diff', DEPLOY / 'terraform')


# The package


@pytest.mark.process
@pytest.mark.xdist_group('package')  # builds write beside the source
def test_the_package_that_dataflow_installs_is_whole(tmp_path):
    """Built, installed into a new environment beside the present packages, imported and started from there."""
    code = f'import setuptools.build_meta as b; print(b.build_sdist({str(tmp_path)!r}))'
    check(sys.executable, '-c', code, cwd=ROOT)
    (sdist,) = tmp_path.glob('*.tar.gz')
    check(sys.executable, '-m', 'venv', '--without-pip', tmp_path / 'new')
    python = tmp_path / 'new' / 'bin' / 'python'
    (site,) = (tmp_path / 'new' / 'lib').glob('python3.*/site-packages')
    import numpy

    (site / 'present.pth').write_text(str(Path(numpy.__file__).parents[1]))
    pip = (sys.executable, '-m', 'pip', '--python', python, 'install', '--no-deps', '--no-build-isolation')
    check(*pip, '--ignore-installed', sdist)
    look = """
import importlib, pathlib, pkgutil, grainhash, pipelines, pipelines.reports, hashing_model
for package in (grainhash, pipelines, hashing_model):
    assert pathlib.Path(package.__file__).is_relative_to({new!r}), package.__file__
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):
        importlib.import_module(module.name)
from hashing_model.features.backbone import load_backbone
load_backbone('efficientnet_lite0', 96)
reports = pathlib.Path(pipelines.reports.__file__).parent
print(*sorted(p.name for p in reports.iterdir() if p.suffix in ('.html', '.css')))
"""
    said = check(python, '-c', look.format(new=str(tmp_path / 'new')), cwd=tmp_path)
    assert said.splitlines()[-1].split() == ['gallery.css', 'gallery.html']
    assert 'Build an index' in check(python.with_name('grainhash'), '--help', cwd=tmp_path)
