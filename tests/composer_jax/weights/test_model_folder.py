from __future__ import annotations

import pytest

from composer_jax.weights.model_folder import stated_licence


@pytest.mark.parametrize(
  ('card', 'licence'),
  [
    ('---\nlicense: mit\n---\n# CLIP\n', 'mit'),
    ('---\r\ntags:\r\n- clip\r\nlicense: "apache-2.0"\r\n---\r\n', 'apache-2.0'),
    ('---\nlicense: other\nlicense_name: openrail\n---\n', 'openrail'),
    ('---\nlicense:\n---\n', None),
    ('---\ntags: [clip]\n---\nlicense: mit\n', None),
    ('# CLIP\n\nlicense: mit\n', None),
    ('---\nlicense: mit\n', None),
    ('', None),
    (None, None),
  ],
)
def test_the_licence_is_that_of_the_head_of_the_model_card(tmp_path, card, licence):
  if card is not None:
    (tmp_path / 'README.md').write_text(card, newline='')
  assert stated_licence(tmp_path) == licence
