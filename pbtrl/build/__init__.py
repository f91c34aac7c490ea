"""Assembly: make strategies, executors, agents and envs from a config. The only package that imports all of them."""
