"""What a robot installs: exported policies, control loop, safety gate, server, client, robots."""
