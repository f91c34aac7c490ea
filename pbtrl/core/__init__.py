"""Building blocks of all other packages: messages, population, search space. No torch, files or processes."""
