"""Algorithms as maths over [P member, T time, B env] tensors. Knows torch and gymnasium.spaces, nothing of pbtrl."""
