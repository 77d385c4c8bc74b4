"""Learning from demonstrations: their data set, cloning and its relatives."""
