"""What two mounts of one volume show when a client or a server dies, sleeps, or cannot be reached."""
