"""Exit codes of the command line. After a signal the code is 128 plus its number."""

USAGE = 2  # a mistake in the command or config
FAILED = 3  # the run or a check failed
CORRUPT = 4  # damaged or missing data
FULL = 75  # the disk is full; the run can be resumed
INTERRUPTED = 130  # stopped by Ctrl-C (129 by SIGHUP, 143 by SIGTERM); the run can be resumed
