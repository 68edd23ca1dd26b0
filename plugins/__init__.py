"""The voices: every room below is a package of its own kind and imports only `kernel`."""
