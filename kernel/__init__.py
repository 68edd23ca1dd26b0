"""The only names that a plugin may import."""
