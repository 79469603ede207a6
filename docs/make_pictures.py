"""Makes the pictures of README.md and docs/tasks/README.md from the shipped model.

Run:  python docs/make_pictures.py --data demo/data

The data need embeddings of the model's own encoder: `composer-jax prepare --onto
demo/data --conditions semantics,caption --encoder demo --overwrite`.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import skimage.data
from PIL import Image, ImageDraw, ImageFont

from composer_jax import conditions
from composer_jax.composer import Composer, decompose, square_of
from composer_jax.conditions.palette import expected_colours
from composer_jax.diffusion.process import coefficients, q_sample
from composer_jax.diffusion.resolution import to_float, to_uint8
from composer_jax.diffusion.schedule import make_schedule
from composer_jax.evaluation.curves import read_curves
from composer_jax.images import Picture
from composer_jax.sampling.expression import And, Is, Not, Weighted
from composer_jax.seeds import generator
from composer_jax.shipped import model_folder
from composer_jax.tasks.boolean import boolean
from composer_jax.tasks.colorization import colorization
from composer_jax.tasks.composition import composition
from composer_jax.tasks.interpolation import interpolation
from composer_jax.tasks.pose_transfer import pose_transfer
from composer_jax.tasks.reconfiguration import reconfiguration
from composer_jax.tasks.region_editing import region_editing
from composer_jax.tasks.style_transfer import style_transfer
from composer_jax.tasks.text_to_image import text_to_image
from composer_jax.tasks.translation import translation
from composer_jax.tasks.try_on import try_on
from composer_jax.tasks.variation import variation
from data_pipelines.loader import load_dataset

CELL, GAP, LABEL = 128, 6, 18
TEXTS = [
  'grinning face',
  'red heart',
  'yellow flower',
  'green book',
  'flag',
  'blue circle',
  'red car',
]
FOLDER = pathlib.Path(__file__).parent / 'images'


def scaled(pixels: np.ndarray) -> Image.Image:
  """A picture, stretched over a cell with hard pixels."""
  return Image.fromarray(pixels).resize((CELL, CELL), Image.Resampling.NEAREST)


def grid(rows: list[list[np.ndarray | None]], titles: list[str]) -> Image.Image:
  """Pictures in rows, with a title over each column; None leaves a cell free."""
  width = len(titles) * (CELL + GAP) + GAP
  height = LABEL + len(rows) * (CELL + GAP) + GAP
  sheet = Image.new('RGB', (width, height), 'white')
  pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
  for column, title in enumerate(titles):
    middle = GAP + column * (CELL + GAP) + CELL // 2
    pen.text((middle, LABEL // 2 + 2), title, 'black', font, anchor='mm')
  for y, row in enumerate(rows):
    for x, pixels in enumerate(row):
      if pixels is not None:
        place = (GAP + x * (CELL + GAP), LABEL + GAP + y * (CELL + GAP))
        sheet.paste(scaled(pixels), place)
  return sheet


def decomposed(composer: Composer, records: list[dict]) -> Image.Image:
  """An image a row, beside its conditions."""
  size = composer.condition_size
  rows = []
  for record in records:
    pictures = [record['image']]
    for condition in conditions.ALL:
      rng = generator(0, condition.name)
      value = record.get(condition.name)
      if value is None:
        value = condition.extract(Picture(record['image']), rng)
      pictures.append(condition.draw(value))
    rows.append(pictures)
  photograph = square_of(Picture(skimage.data.astronaut()), size)
  found = decompose(photograph, size, encoder=composer.encoder, caption='an astronaut')
  drawn = [c.draw(found[c.name]) if c.name in found else None for c in conditions.ALL]
  rows.append([photograph.pixels, *drawn])
  return grid(rows, ['image', *(c.name for c in conditions.ALL)])


def expected(records: list[dict]) -> Image.Image:
  """Noisy images, and below each the colours that its own palette makes expect."""
  schedule = make_schedule('cosine', 1000)
  steps = np.array([900, 750, 600, 450, 300, 150])
  c = coefficients(jnp.asarray(schedule.alphas_cumprod), steps, 4)
  rows = []
  for i, record in enumerate(records):
    image = to_float(jnp.asarray(record['image'])[None], 32)
    noise = jax.random.normal(jax.random.key(i), (len(steps), *image.shape[1:]))
    x_t = q_sample(image, noise, c)
    palette = np.stack([record['palette']] * len(steps))
    colours = expected_colours(x_t, c, palette, np.ones(len(steps)))
    drawn = conditions.by_name(['palette'])[0].draw(record['palette'])
    rows.append(list(to_uint8(np.concatenate([image, x_t]))))
    rows.append([drawn, *to_uint8(np.array(colours))])
  return grid(rows, ['image, palette', *(f'step {step} of 1000' for step in steps)])


def recomposed(composer: Composer, records: list[dict]) -> Image.Image:
  """Held-out images, and what comes of some of their conditions."""
  wishes = [
    ('all eight', composer.names),
    ('palette + sketch', ('palette', 'sketch')),
    ('palette + intensity', ('palette', 'intensity')),
    ('mask', ('mask',)),
    ('sketch', ('sketch',)),
    ('palette', ('palette',)),
  ]
  stored = stacked(composer, records)
  columns = [np.stack([record['image'] for record in records])]
  for _, names in wishes:
    columns.append(
      composer.compose(
        {name: stored[name] for name in names}, seeds=np.arange(len(records))
      )
    )
  rows = [list(row) for row in zip(*columns, strict=True)]
  masks = conditions.by_name(['mask'])[0]
  for row, mask in zip(rows, stored['mask'], strict=True):
    row.insert(4, masks.draw(mask))
  titles = [title for title, _ in wishes]
  return grid(rows, ['image', *titles[:3], 'given part', *titles[3:]])


def mixed(composer: Composer, records: list[dict]) -> Image.Image:
  """The sketch of each row with the palette of each column."""
  half = len(records) // 2
  rows, columns = records[:half], records[half:]
  stored = stacked(composer, records)
  pairs = [(row, half + column) for row in range(half) for column in range(half)]
  images = composer.compose(
    {
      'sketch': stored['sketch'][[row for row, _ in pairs]],
      'palette': stored['palette'][[column for _, column in pairs]],
    },
    seeds=np.array([row for row, _ in pairs]),
  )
  sketch, palette = conditions.by_name(['palette', 'sketch'])[::-1]
  top: list[np.ndarray | None] = [None, None]
  second: list[np.ndarray | None] = [None, None]
  top += [column['image'] for column in columns]
  second += [palette.draw(column['palette']) for column in columns]
  body: list[list[np.ndarray | None]] = [
    [row['image'], sketch.draw(row['sketch']), *images[y * half : (y + 1) * half]]
    for y, row in enumerate(rows)
  ]
  titles = ['lines of', 'sketch', *['colours of'] * half]
  return grid([top, second, *body], titles)


def from_text(composer: Composer, texts: list[str], seeds: int = 3) -> Image.Image:
  """What comes of texts alone, through the prior and all upsamplers."""
  images = text_to_image(
    composer, texts * seeds, seeds=np.repeat(np.arange(seeds), len(texts))
  )
  rows = [list(row) for row in images.reshape(seeds, len(texts), *images.shape[1:])]
  return grid(rows, texts)


def of_tasks(composer: Composer, records: list[dict]) -> dict[str, Image.Image]:
  """A picture of each task of docs/tasks/, by name."""
  images = np.stack([record['image'] for record in records])
  own = stacked(composer, records)
  other = np.roll(np.arange(len(images)), 1)
  seeds = np.arange(len(images))
  side = composer.condition_size
  region = np.zeros((len(images), side, side), bool)
  region[:, side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = True
  hidden = np.where(region[..., None], 255, images).astype(np.uint8)
  palettes = conditions.by_name(['palette'])[0]
  swatches = [palettes.draw(value) for value in own['palette'][other]]

  def beside(**columns: Any) -> Image.Image:
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return grid(rows, [name.replace('_', ' ') for name in columns])

  def path(draw: Callable[[float], np.ndarray]) -> Image.Image:
    shares = np.linspace(0, 1, 5)
    made = {f'{share:.2f}': draw(share) for share in shares}
    return beside(image=images, **made, other=images[other])

  def follow(weight: float) -> list[np.ndarray]:
    made = []
    for sketch, palette, seed in zip(own['sketch'], own['palette'], seeds, strict=True):
      away = Weighted(weight, Not(Is('palette', palette)))
      asked = And((Is('sketch', sketch), away))
      made += list(boolean(composer, asked, seeds=seeds[seed : seed + 1]))
    return made

  count = len(images)
  return {
    'variation': beside(
      image=images,
      **{
        f'seed_{shift // count}': variation(
          composer, images, seeds=seeds + shift, keep=('semantics', 'palette', 'depth')
        )
        for shift in (0, count, 2 * count, 3 * count)
      },
    ),
    'interpolation': path(
      lambda share: interpolation(
        composer, images, images[other], np.full(count, share), held=['sketch']
      )
    ),
    'style_transfer': path(
      lambda share: style_transfer(
        composer, images, images[other], np.full(count, share), seeds=seeds
      )
    ),
    'reconfiguration': beside(
      image=images,
      unedited=reconfiguration(composer, images, {}, sampling={'steps': 50}),
      colours=swatches,
      with_them=reconfiguration(
        composer,
        images,
        {'palette': own['palette'][other]},
      ),
    ),
    'region_editing': beside(
      image=images,
      region=hidden,
      colours=swatches,
      with_them=region_editing(
        composer, images, region, {'palette': own['palette'][other]}, seeds=seeds
      ),
    ),
    'colorization': beside(
      image=images,
      colours=swatches,
      in_them=colorization(composer, images, own['palette'][other], seeds=seeds),
    ),
    'translation': beside(
      image=images,
      **{
        text.replace(' ', '_'): translation(
          composer, images, [text] * count, seeds=seeds
        )
        for text in ('green frog', 'red heart', 'smiling face', 'blue car')
      },
    ),
    'pose_transfer': beside(
      subject=images,
      pose=images[other],
      together=pose_transfer(composer, images, images[other], seeds=seeds),
    ),
    'try_on': beside(
      image=images,
      region=hidden,
      garment=images[other],
      worn=try_on(composer, images, images[other], region, seeds=seeds),
    ),
    'composition': beside(
      sketch_of=images,
      depth_of=images[other],
      colours_of=images[np.roll(other, 1)],
      together=composition(
        composer,
        {
          'sketch': images,
          'depth': images[other],
          'palette': images[np.roll(other, 1)],
        },
        seeds=seeds,
      ),
    ),
    'boolean': beside(
      sketch_of=images,
      colours=[palettes.draw(value) for value in own['palette']],
      sketch=follow(0.0),
      away_from_them=follow(1.0),
    ),
  }


def curves(folder: pathlib.Path, path: pathlib.Path) -> None:
  """The losses of all stages, side by side."""
  losses = [curve for curve in read_curves(folder) if curve.name == 'loss']
  figure, axes = plt.subplots(1, len(losses), figsize=(12, 2.4), layout='constrained')
  for axis, curve in zip(axes, losses, strict=True):
    axis.semilogy(curve.steps, curve.values, linewidth=1)
    axis.set_title(curve.stage, fontsize=10)
    axis.set_xlabel('step', fontsize=8)
    axis.tick_params(labelsize=7, which='both')
  axes[0].set_ylabel('loss', fontsize=8)
  figure.savefig(path, dpi=100)
  plt.close(figure)


def stacked(composer: Composer, records: list[dict]) -> dict[str, np.ndarray]:
  """The conditions of records, those drawn from the pixels too, as batches."""
  found = {}
  for condition in conditions.by_name(composer.names):
    found[condition.name] = np.stack(
      [
        record[condition.name]
        if condition.stored
        else condition.extract(Picture(record['image']), generator(i, condition.name))
        for i, record in enumerate(records)
      ]
    )
  return found


def main() -> None:
  """Writes docs/images/."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--model', default='demo', metavar='DIR')
  parser.add_argument('--data', required=True, metavar='DIR')
  parser.add_argument('--seed', type=int, default=0)
  flags = parser.parse_args()
  composer = Composer.load(flags.model)
  dataset = load_dataset(flags.data, 'test')
  order = np.random.default_rng(flags.seed).permutation(len(dataset))
  records = [dataset[int(index)] for index in order[:10]]
  FOLDER.mkdir(exist_ok=True)
  decomposed(composer, records[:2]).save(FOLDER / 'decomposed.png')
  expected(records[3:5]).save(FOLDER / 'palette_map.png')
  recomposed(composer, records[:6]).save(FOLDER / 'recomposed.png')
  mixed(composer, records).save(FOLDER / 'mixed.png')
  from_text(composer, TEXTS).save(FOLDER / 'from_text.png')
  (FOLDER / 'tasks').mkdir(exist_ok=True)
  for name, picture in of_tasks(composer, records[1:6]).items():
    picture.save(FOLDER / 'tasks' / f'{name}.png')
  curves(model_folder(flags.model), FOLDER / 'curves.png')


if __name__ == '__main__':
  main()
