"""What a data set holds: its contract, frames, actions and videos; other words for its tasks."""
