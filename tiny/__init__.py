"""The tiny world, and how the frozen parts of the tiny preset were made."""
