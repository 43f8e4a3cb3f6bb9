"""Models by name, where their weights come from, and their metrics."""
