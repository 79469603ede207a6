from __future__ import annotations

import io
import json

import numpy as np
import pytest
import skimage.data
from PIL import Image

import composer_jax
from composer_jax import cli, conditions
from composer_jax.images import Picture
from data_pipelines.records import RecordType

MEASURED = [c.name for c in conditions.ALL if not c.embedded]
SIZE = 32


@pytest.fixture(scope='module')
def photo(tmp_path_factory):
  path = tmp_path_factory.mktemp('photo') / 'coffee.png'
  Image.fromarray(skimage.data.coffee()[:320, 100:452]).save(path)
  return path


def decompose(image, out, *more, size=SIZE):
  flags = [str(image), '--out', str(out), '--size', str(size), *more]
  return cli.main(['decompose', *flags])


def arrays_of(folder):
  with np.load(folder / 'conditions.npz', allow_pickle=False) as arrays:
    return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope='module')
def folder(photo, tmp_path_factory):
  """What the command writes of a photograph."""
  out = tmp_path_factory.mktemp('decomposed') / 'new' / 'folder'
  assert decompose(photo, out, '--seed', '3', '--caption', 'a cup') == 0
  return out


def test_there_is_one_array_for_each_condition_and_the_image(folder):
  arrays = arrays_of(folder)
  assert set(arrays) == {'image', *MEASURED}
  assert arrays['image'].dtype == np.uint8
  assert arrays['image'].shape == (SIZE, SIZE, 3)
  for condition in conditions.by_name(MEASURED):
    spec, value = condition.spec(SIZE), arrays[condition.name]
    assert value.dtype == spec.dtype
    assert value.shape == spec.shape
    assert spec.low <= value.min() <= value.max() <= spec.high
    assert value.any()


def test_the_image_is_the_middle_square_averaged_over_areas(photo, folder):
  square = np.array(Image.open(photo)).astype(float)[:, 16:336]
  expected = square.reshape(SIZE, 10, SIZE, 10, 3).mean((1, 3))
  # Pillow rounds after each of the two axes.
  np.testing.assert_allclose(arrays_of(folder)['image'], expected, atol=1)


def test_the_conditions_are_those_of_the_image(folder):
  arrays = arrays_of(folder)
  image, rng = arrays['image'], np.random.default_rng(0)
  for name in ('palette', 'sketch', 'instances', 'depth'):  # Nothing in them is drawn.
    (condition,) = conditions.by_name([name])
    np.testing.assert_array_equal(arrays[name], condition.extract(Picture(image), rng))
  visible = arrays['mask'][..., 3:] > 0
  assert 0 < visible.mean() < 1
  expected = np.where(visible, image, 0)
  np.testing.assert_array_equal(arrays['mask'][..., :3], expected)
  gray = arrays['intensity'][..., 0]
  assert (gray >= image.min(-1)).all()
  assert (gray <= image.max(-1)).all()


def test_a_file_beside_them_says_what_they_are(folder):
  about = json.loads((folder / 'conditions.json').read_text())
  plain = {k: v for k, v in about.items() if k != 'conditions'}
  assert plain == {
    'version': composer_jax.__version__,
    'image': 'coffee.png',
    'caption': 'a cup',
    'size': SIZE,
    'seed': 3,
    'left_out': ['caption', 'semantics'],
  }
  assert list(about['conditions']) == MEASURED
  for name, value in arrays_of(folder).items():
    if name != 'image':
      spec = about['conditions'][name]
      assert spec['shape'] == list(value.shape)
      assert spec['dtype'] == value.dtype
      assert spec['unit']
      assert spec['source']


def test_each_condition_has_a_picture(folder):
  files = {path.name for path in folder.iterdir()}
  pictures = {f'{name}.png' for name in ('image', *MEASURED)}
  assert files == {'conditions.npz', 'conditions.json', *pictures}
  arrays = arrays_of(folder)
  for name in ('image', *MEASURED):
    with Image.open(folder / f'{name}.png') as picture:
      assert (picture.format, picture.mode) == ('PNG', 'RGB')
      pixels = np.array(picture)
    if name == 'image':
      np.testing.assert_array_equal(pixels, arrays['image'])
    elif name == 'sketch':  # Dark lines on white.
      np.testing.assert_array_equal(pixels, 255 - arrays[name].repeat(3, -1))
    else:
      assert pixels.std() > 0


def test_the_arrays_survive_the_record_format_bit_by_bit(folder):
  arrays = arrays_of(folder)
  record_type = RecordType.of(SIZE, conditions.by_name(MEASURED))
  data = record_type.encode({'key': 'coffee.png', 'text': 'a cup', **arrays})
  assert isinstance(data, bytes)
  back = record_type.decode(data)
  assert (back.pop('key'), back.pop('text')) == ('coffee.png', 'a cup')
  assert back.keys() == arrays.keys()
  for name, array in arrays.items():
    assert back[name].dtype == array.dtype
    assert back[name].shape == array.shape
    assert back[name].tobytes() == array.tobytes()


def test_the_types_in_the_file_suffice_to_store_the_arrays(folder):
  arrays = arrays_of(folder)
  about = json.loads((folder / 'conditions.json').read_text())['conditions']
  types = {name: (tuple(one['shape']), one['dtype']) for name, one in about.items()}
  record_type = RecordType({'image': ((SIZE, SIZE, 3), 'uint8')} | types, texts=())
  back = record_type.decode(record_type.encode(arrays))
  for name, array in arrays.items():
    np.testing.assert_array_equal(back[name], array)


def test_the_seed_decides_what_is_drawn_and_nothing_else(photo, folder, tmp_path):
  drawn = {c.name for c in conditions.ALL if not c.stored}
  first, differ = arrays_of(folder), set()
  assert decompose(photo, tmp_path / 'again', '--seed', '3') == 0
  for name, array in arrays_of(tmp_path / 'again').items():
    np.testing.assert_array_equal(array, first[name])
  for seed in range(4, 8):
    assert decompose(photo, tmp_path / 'other', '--seed', str(seed)) == 0
    other = arrays_of(tmp_path / 'other')
    differ |= {name for name in first if (first[name] != other[name]).any()}
  assert differ == drawn


def test_what_was_made_and_what_was_left_out_is_said(photo, tmp_path, capsys):
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out' / 'caption.png').write_bytes(b'of another image')
  assert decompose(photo, tmp_path / 'out') == 0
  output = capsys.readouterr()
  assert output.out.splitlines() == [
    f'{tmp_path / "out"}: {", ".join(MEASURED)}',
    'left out, for want of --model DIR: caption, semantics',
  ]
  assert not (tmp_path / 'out' / 'caption.png').exists()
  assert output.err == ''


def test_a_transparent_image_lies_on_white_and_its_shape_is_the_instance(tmp_path):
  pixels = np.zeros((64, 64, 4), np.uint8)
  pixels[..., :3] = (200, 30, 30)
  pixels[8:32, 20:52, 3] = 255
  Image.fromarray(pixels).save(tmp_path / 'drawing.png')
  assert decompose(tmp_path / 'drawing.png', tmp_path / 'out') == 0
  arrays = arrays_of(tmp_path / 'out')
  inside = np.zeros((SIZE, SIZE, 1), bool)
  inside[4:16, 10:26] = True
  expected = np.where(inside, np.array([200, 30, 30]), 255)
  np.testing.assert_array_equal(arrays['image'], expected)
  np.testing.assert_array_equal(arrays['instances'], inside)


def test_a_text_called_png_is_one_clear_error(tmp_path, capsys):
  path = tmp_path / 'letter.png'
  path.write_text('Dear reader, this is no image.\n')
  assert decompose(path, tmp_path / 'out') == 1
  output = capsys.readouterr()
  assert output.out == ''
  (line,) = output.err.splitlines()
  assert line.startswith(f'composer-jax decompose: {path}: ')
  assert 'expected an image' in line
  assert not (tmp_path / 'out').exists()


def test_an_image_that_is_cut_off_is_one_clear_error(photo, tmp_path, capsys):
  path = tmp_path / 'half.png'
  path.write_bytes(photo.read_bytes()[:5000])
  assert decompose(path, tmp_path / 'out') == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(f'composer-jax decompose: {path}: the image data stop after')
  assert not (tmp_path / 'out').exists()


def test_a_missing_image_is_named(tmp_path, capsys):
  assert decompose(tmp_path / 'absent.png', tmp_path / 'out') == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert 'absent.png' in line


def test_a_model_without_an_encoder_is_named(photo, tmp_path, capsys):
  assert decompose(photo, tmp_path / 'out', '--model', str(tmp_path)) == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert str(tmp_path / 'config.json') in line
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('size', ['7', '0', '-64', '4097', 'large'])
def test_a_senseless_size_is_refused(photo, tmp_path, capsys, size):
  with pytest.raises(SystemExit) as stop:
    decompose(photo, tmp_path / 'out', size=size)
  assert stop.value.code == 2
  assert f'{size}' in capsys.readouterr().err.splitlines()[-1]
  assert not (tmp_path / 'out').exists()


def test_a_large_jpeg_is_decomposed_too(tmp_path):
  buffer = io.BytesIO()
  Image.fromarray(skimage.data.astronaut()).save(buffer, 'JPEG', quality=95)
  (tmp_path / 'a.jpg').write_bytes(buffer.getvalue())
  assert decompose(tmp_path / 'a.jpg', tmp_path / 'out', size=8) == 0
  expected = skimage.data.astronaut().reshape(8, 64, 8, 64, 3).mean((1, 3))
  np.testing.assert_allclose(arrays_of(tmp_path / 'out')['image'], expected, atol=3)
