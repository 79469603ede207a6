"""From noise to images: the loop, its samplers and how they are guided."""
