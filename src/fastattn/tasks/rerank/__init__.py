"""Scores pairs of texts, as the CrossEncoder of sentence-transformers does."""
