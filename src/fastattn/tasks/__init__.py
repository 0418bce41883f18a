"""Pipelines and sentence embeddings: from texts to results."""
