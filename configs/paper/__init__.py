"""Composer at the sizes of the paper."""
