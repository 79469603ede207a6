"""composer_jax: compose images from captions, palettes, sketches, depth and more."""

__version__ = '0.1.0'
