"""The parts of `KeyedVectors`: the files of word2vec, GloVe and fastText, and the n-grams of fastText."""
