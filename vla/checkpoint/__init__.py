"""The checkpoint folder: written all or not at all, checked when read."""
