"""Teaching the vision-language model where objects are."""
