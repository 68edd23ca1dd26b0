"""For authors of plugins: what a plugin of each kind can be put through."""
