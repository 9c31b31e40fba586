"""Features in the place of images."""
