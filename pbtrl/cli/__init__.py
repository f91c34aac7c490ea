"""The command line: a thin layer over the library. Only this room knows exit codes and prints results."""
