"""Virtual members: many replicas in one process, by the run's own code, in simulated seconds. docs/simulate.md."""
