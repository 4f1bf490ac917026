"""Programs that write and read all the time while data servers fail, and tell how long they had to wait."""
