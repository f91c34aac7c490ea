"""Diagnosis of machines and runs: benchmark, doctor, verify."""
