"""Route strategies: each says when one way to a broker is the right one."""
