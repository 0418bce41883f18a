"""Functions on vectors, with the names and results of sentence_transformers.util.

    cos_sim  dot_score  euclidean_sim  manhattan_sim  pairwise_cos_sim  pairwise_dot_score  pairwise_euclidean_sim
    pairwise_manhattan_sim  pairwise_angle_sim  normalize_embeddings  truncate_embeddings  quantize_embeddings
    semantic_search  semantic_search_quantized  paraphrase_mining  paraphrase_mining_embeddings  community_detection
    maxsim  mean_maxsim  maxsim_pairwise  mean_maxsim_pairwise

Vectors are arrays [n, d] or [d], CPU tensors, or lists of numbers (read as float32). Results are NumPy arrays and
Python numbers: float64 if all vectors are float64, else float32.

Errors: DTypeError for a wrong type, InputError for a wrong shape or value, NonFiniteError if a score is not finite.
"""

from __future__ import annotations

from fastattn.tasks.search.communities import community_detection
from fastattn.tasks.search.embeddings import normalize_embeddings, truncate_embeddings
from fastattn.tasks.search.maxsim import maxsim, maxsim_pairwise, mean_maxsim, mean_maxsim_pairwise
from fastattn.tasks.search.paraphrases import paraphrase_mining, paraphrase_mining_embeddings
from fastattn.tasks.search.quantization import quantize_embeddings
from fastattn.tasks.search.quantized import semantic_search_quantized
from fastattn.tasks.search.semantic import semantic_search
from fastattn.tasks.search.similarity import (
    cos_sim,
    dot_score,
    euclidean_sim,
    manhattan_sim,
    pairwise_angle_sim,
    pairwise_cos_sim,
    pairwise_dot_score,
    pairwise_euclidean_sim,
    pairwise_manhattan_sim,
)

__all__ = [
    "community_detection",
    "cos_sim",
    "dot_score",
    "euclidean_sim",
    "manhattan_sim",
    "maxsim",
    "maxsim_pairwise",
    "mean_maxsim",
    "mean_maxsim_pairwise",
    "normalize_embeddings",
    "pairwise_angle_sim",
    "pairwise_cos_sim",
    "pairwise_dot_score",
    "pairwise_euclidean_sim",
    "pairwise_manhattan_sim",
    "paraphrase_mining",
    "paraphrase_mining_embeddings",
    "quantize_embeddings",
    "semantic_search",
    "semantic_search_quantized",
    "truncate_embeddings",
]


def __dir__() -> list[str]:
    return sorted(__all__)
