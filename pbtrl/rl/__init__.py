"""Reinforcement learning for cohorts: rollouts, learning, acting processes and evaluation."""
