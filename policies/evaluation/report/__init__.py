"""One self-contained page that shows how policies compare, and the same numbers as JSON."""
