"""Looking at the machine and at runs: benchmark, doctor, verify."""
