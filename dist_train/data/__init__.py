"""From documents on disk to batches: sources, tokenizers, the corpus, its shuffled stream."""
