"""Who is asking: each reads one kind of credential."""
