"""Exit codes of the command line; a signal's is 128 and its number."""

USAGE = 2  # a mistake in the command or config
FAILED = 3  # the run failed, or a check did
CORRUPT = 4  # damaged or missing data
FULL = 75  # no space on the disk; can be resumed
INTERRUPTED = 130
