"""Observations and actions to tensors and back: processor, prompts and normalisation."""
