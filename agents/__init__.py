"""RL algorithms as functions of [P member, T time, B env] tensors.

This package imports torch and gymnasium.spaces, and only `pbtrl.errors` from the rest of pbtrl.
"""
