"""The machine underneath: processes, files, signals, memory. Knows nothing of runs or populations."""
