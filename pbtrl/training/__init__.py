"""Training a population: the loop, a session of it, and the choice of the best member."""
