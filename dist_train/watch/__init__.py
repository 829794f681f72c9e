"""Watching a run while it goes on: pages over HTTP that can be read and change nothing."""
