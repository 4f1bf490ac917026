"""Programs that share a volume through several mounts."""
