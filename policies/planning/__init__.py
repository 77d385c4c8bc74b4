"""Planning: CEM and MPPI over any `Dynamics`, run in a receding horizon."""
