"""Measurements: each prints what it measured, with seed, versions and commit; `--json` where others read it."""
