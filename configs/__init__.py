"""Configurations by name, each a file that says what it reproduces."""
