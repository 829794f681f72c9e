"""Tensors to bytes and back: codecs, error feedback and aggregation. Knows no network."""
