"""What people see of a run: terminal, tables, plots, TensorBoard, a report."""
