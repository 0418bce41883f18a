"""The parts of `MultiVectorEncoder`: its folders, query expansion, the mask of tokens, and MaxSim."""
