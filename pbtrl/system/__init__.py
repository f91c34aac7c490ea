"""Operating system services: processes, files, signals, memory. Independent of runs and populations."""
