"""What can be wrong with a run's machines: facts of every rank, and a judge for each kind."""
