"""Data sources by name, the loaders that they share, and what a source says of itself."""
