"""Comparison of groups of runs: their scores with intervals, their curves, and a page that shows both."""
