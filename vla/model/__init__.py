"""The vision-language-action model: a transformers backbone and an action head."""
