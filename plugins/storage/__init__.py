"""Storage backends and the one schema that they share."""
