"""The parts of `EmbeddingCache`: the SQLite file and the keys of its entries."""
