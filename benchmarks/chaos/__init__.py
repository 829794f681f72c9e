"""A run under faults, and the judge of what became of it."""
