"""`python -m composer_jax`."""

import sys

from composer_jax.cli import main

if __name__ == '__main__':
  sys.exit(main())
