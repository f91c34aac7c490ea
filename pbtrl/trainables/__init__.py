"""Trainables that are not reinforcement learning: proof that the controller is generic. One file each."""
