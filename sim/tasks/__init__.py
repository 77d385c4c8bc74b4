"""One file a task family, and one explicit registry."""
