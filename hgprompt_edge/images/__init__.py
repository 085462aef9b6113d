"""Image files to upright pixels of the size that a model takes."""
