"""Metrics exporters: each tells what happened in one format."""
