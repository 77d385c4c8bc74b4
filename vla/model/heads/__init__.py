"""Action heads, one file each."""
