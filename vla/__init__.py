"""What travels to the robot: contract, processor, model, checkpoint, safety."""
