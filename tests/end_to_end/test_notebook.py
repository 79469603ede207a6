from __future__ import annotations

import pathlib

import nbclient
import nbformat
import pytest

from tests.compiling import SHIPPED

NOTEBOOK = pathlib.Path(__file__).parent.parent.parent / 'docs' / 'walkthrough.ipynb'


@pytest.fixture(scope='module')
def executed(tmp_path_factory):
  """Run anew in an empty folder."""
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  folder = tmp_path_factory.mktemp('notebook')
  resources = {'metadata': {'path': str(folder)}}
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XLA_FLAGS', SHIPPED)
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
  return notebook


def outputs(notebook):
  return [out for cell in notebook.cells for out in cell.get('outputs', [])]


def test_the_notebook_runs_and_the_image_comes_again(executed):
  pictures = [out for out in outputs(executed) if 'image/png' in out.get('data', {})]
  assert len(pictures) == 10
  assert outputs(executed)[-1]['data']['text/plain'] == 'True'


def test_it_is_stored_with_its_pictures(executed):
  stored = nbformat.read(NOTEBOOK, as_version=4)
  kinds = [
    [sorted(out.get('data', {})) for out in outputs(n)] for n in (stored, executed)
  ]
  assert kinds[0] == kinds[1]
