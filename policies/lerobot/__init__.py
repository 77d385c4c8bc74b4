"""LeRobot's own policies, trained and played faster."""
