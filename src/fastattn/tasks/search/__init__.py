"""Compares, searches, mines and quantizes vectors, as sentence_transformers.util does."""
