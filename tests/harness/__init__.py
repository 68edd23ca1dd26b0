"""Programs and clients that see a hub only from outside: over HTTP, the socket and its process."""
