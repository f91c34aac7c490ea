"""Reinforcement learning as a trainable: rollouts, the RL cohort, evaluation."""
