"""What an agent's process finds around it, resolved when its intent is executed."""
