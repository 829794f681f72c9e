"""Many processes on many machines: the command line and the ways to start a run."""
