"""From a YAML file to a checked recipe, or to one error that names the key."""
