"""Command line: a thin layer over the library. Only this package uses exit codes and prints results."""
