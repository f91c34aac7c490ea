"""Presentation of runs: terminal, tables, plots, TensorBoard and the HTML report."""
