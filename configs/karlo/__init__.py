"""Configs that go on from the public weights of Karlo."""
