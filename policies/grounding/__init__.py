"""Teaching the vision-language model where things are."""
