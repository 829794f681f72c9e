"""A replica made of several weak machines: stages, what crosses their boundaries, and what that asks of the weights.

Reading order: `basis` (the subspace), `boundary` (what is sent), `wire` (its bytes), `stage` (a cut of the model),
`subspace` (weights that stay in it, and the sync with dense replicas), `engine` (a step of all stages),
`rehearsal` (the same replica in one process), `health`, `terms` (what its stages must agree on).
"""
