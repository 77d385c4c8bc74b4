"""Exported policies: the folder's format, and the policy that runs its graphs."""
