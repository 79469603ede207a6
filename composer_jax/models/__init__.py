"""Networks: the Composer U-Net and its parts, free of diffusion."""
