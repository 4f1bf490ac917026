"""A writer that records what it synced, and a verifier that knows what may be there after a crash.

Contract: what was synced is there byte for byte, with the names that lead to it; names form a prefix of what was done, in order;
of what was not synced, every block is one of those written to that place of that file, or a hole that was there.
"""
