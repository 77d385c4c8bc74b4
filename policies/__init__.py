"""How behaviour is obtained: imitation, reinforcement, planning, evaluation."""
