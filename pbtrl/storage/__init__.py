"""Files of a run directory. The journal is the single source of truth."""
