"""The policy as LeRobot knows it, and LeRobot's checkpoints as policies here."""
