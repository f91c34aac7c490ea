"""A run directory and everything in it. The journal is the only truth."""
