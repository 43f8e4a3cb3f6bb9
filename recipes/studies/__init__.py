"""The studies, by whose names a YAML finds them: ``study: {tickets: {...}}``."""
