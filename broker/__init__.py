"""The far end: a program of its own that runs agents and imports only `kernel.wire`."""
