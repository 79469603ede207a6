"""The mathematics of diffusion, free of models and files."""
