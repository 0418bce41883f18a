"""The parts of `SparseEncoder`: sparse vectors and the SPLADE pooling."""
