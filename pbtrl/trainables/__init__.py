"""Trainables other than reinforcement learning, one file each; they prove that the controller is generic."""
