"""What the machine's failure must not take: see the script `power`."""
