"""The parts of `SentenceTransformer`: the files of a folder, the modules, similarity functions and options."""
