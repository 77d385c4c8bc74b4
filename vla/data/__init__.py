"""What a data set says of itself: its contract, its recorded actions, its videos."""
