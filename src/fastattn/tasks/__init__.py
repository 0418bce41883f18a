"""Text in, answers out: pipelines and sentence embeddings."""
