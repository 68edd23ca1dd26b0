"""What the keeper is made of. Standard library only: it starts once for each run of an agent, and stays."""
