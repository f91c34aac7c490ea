"""What everything else is built from: messages, population, search space. Knows no torch, files or processes."""
