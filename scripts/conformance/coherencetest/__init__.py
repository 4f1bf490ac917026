"""What one mount shows of what another one did: in turns, at the same time, and in recorded histories."""
