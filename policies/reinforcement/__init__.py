"""Reinforcement learning, one file a method."""
