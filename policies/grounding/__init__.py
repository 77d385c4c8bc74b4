"""Grounding: training the vision-language model to point at the objects that words name."""
