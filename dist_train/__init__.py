"""The training: config, data, model, inner and outer step, the round, checkpoints and reports."""
