"""LeRobot's own policies, trained and run faster."""
