"""What a person types: thin commands over `sim`, `policies` and `vla`."""
