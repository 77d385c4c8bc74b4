"""The tasks as a LeRobot environment and as a LeRobot robot."""
