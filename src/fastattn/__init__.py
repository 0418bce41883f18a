"""Run Llama, GPT and BERT models from Python, close to the CPU's limit: numpy in, numpy out, no PyTorch."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

from fastattn import errors
from fastattn.errors import (
    CacheError,
    Cancelled,
    ConfigError,
    ContextLengthError,
    DTypeError,
    FastattnError,
    HubError,
    InputError,
    ModelFormatError,
    ModelNotFoundError,
    NonFiniteError,
    OutOfMemory,
    ReadOnlyError,
    UnknownKeyError,
)

if TYPE_CHECKING:
    from fastattn import generation, ops, util, viz
    from fastattn.api.auto import (
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoModelForMultipleChoice,
        AutoModelForNextSentencePrediction,
        AutoModelForPreTraining,
        AutoModelForQuestionAnswering,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
    )
    from fastattn.api.auto_tokenizer import AutoTokenizer
    from fastattn.api.quantize import quantize
    from fastattn.generation.generate import GenerateOutput, TextStream
    from fastattn.generation.options import GenerationOptions
    from fastattn.ops import scaled_dot_product_attention
    from fastattn.tasks.check_folder import FolderReport, check_folder
    from fastattn.tasks.cross_encoder import CrossEncoder
    from fastattn.tasks.elmo import ElmoEmbedder
    from fastattn.tasks.embedding_cache import EmbeddingCache
    from fastattn.tasks.generators import TextCrossEncoder, TextEmbedding
    from fastattn.tasks.keyed_vectors import FastTextKeyedVectors, KeyedVectors, load_facebook_vectors
    from fastattn.tasks.llm import Llm
    from fastattn.tasks.multi_vector_encoder import MultiVectorEncoder
    from fastattn.tasks.pipelines import pipeline
    from fastattn.tasks.quality import QualityReport, compare_dtypes
    from fastattn.tasks.recurrent_seq2seq import RecurrentSeq2Seq
    from fastattn.tasks.sentence_transformer import SentenceTransformer
    from fastattn.tasks.sparse_encoder import SparseEncoder
    from fastattn.tasks.verify_model import VerifyReport, verify_model
    from fastattn.tokenizer import BatchEncoding, Tokenizer

__version__ = "0.1.0"

# Names are imported on first use, so `import fastattn` costs little more than importing numpy.
_HOME = {
    "AutoModel": "fastattn.api.auto",
    "AutoModelForCausalLM": "fastattn.api.auto",
    "AutoModelForSequenceClassification": "fastattn.api.auto",
    "AutoModelForMaskedLM": "fastattn.api.auto",
    "AutoModelForMultipleChoice": "fastattn.api.auto",
    "AutoModelForNextSentencePrediction": "fastattn.api.auto",
    "AutoModelForPreTraining": "fastattn.api.auto",
    "AutoModelForQuestionAnswering": "fastattn.api.auto",
    "AutoModelForTokenClassification": "fastattn.api.auto",
    "AutoTokenizer": "fastattn.api.auto_tokenizer",
    "BatchEncoding": "fastattn.tokenizer",
    "Tokenizer": "fastattn.tokenizer",
    "GenerateOutput": "fastattn.generation.generate",
    "GenerationOptions": "fastattn.generation.options",
    "TextStream": "fastattn.generation.generate",
    "CrossEncoder": "fastattn.tasks.cross_encoder",
    "TextCrossEncoder": "fastattn.tasks.generators",
    "TextEmbedding": "fastattn.tasks.generators",
    "SentenceTransformer": "fastattn.tasks.sentence_transformer",
    "FolderReport": "fastattn.tasks.check_folder",
    "check_folder": "fastattn.tasks.check_folder",
    "VerifyReport": "fastattn.tasks.verify_model",
    "verify_model": "fastattn.tasks.verify_model",
    "ElmoEmbedder": "fastattn.tasks.elmo",
    "EmbeddingCache": "fastattn.tasks.embedding_cache",
    "SparseEncoder": "fastattn.tasks.sparse_encoder",
    "MultiVectorEncoder": "fastattn.tasks.multi_vector_encoder",
    "FastTextKeyedVectors": "fastattn.tasks.keyed_vectors",
    "Llm": "fastattn.tasks.llm",
    "KeyedVectors": "fastattn.tasks.keyed_vectors",
    "load_facebook_vectors": "fastattn.tasks.keyed_vectors",
    "QualityReport": "fastattn.tasks.quality",
    "compare_dtypes": "fastattn.tasks.quality",
    "pipeline": "fastattn.tasks.pipelines",
    "RecurrentSeq2Seq": "fastattn.tasks.recurrent_seq2seq",
    "quantize": "fastattn.api.quantize",
    "scaled_dot_product_attention": "fastattn.ops",
}
# Modules that `fastattn.NAME` imports; only `errors`, `generation`, `ops`, `util` and `viz` are public.
_MODULES = ("api", "checkpoint", "generation", "graph", "models", "ops", "tasks", "tokenizer", "util", "viz")

__all__ = [
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForMaskedLM",
    "AutoModelForMultipleChoice",
    "AutoModelForNextSentencePrediction",
    "AutoModelForPreTraining",
    "AutoModelForQuestionAnswering",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoTokenizer",
    "BatchEncoding",
    "CacheError",
    "Cancelled",
    "ConfigError",
    "ContextLengthError",
    "CrossEncoder",
    "DTypeError",
    "ElmoEmbedder",
    "EmbeddingCache",
    "FastTextKeyedVectors",
    "FastattnError",
    "FolderReport",
    "GenerateOutput",
    "GenerationOptions",
    "HubError",
    "InputError",
    "KeyedVectors",
    "Llm",
    "ModelFormatError",
    "ModelNotFoundError",
    "MultiVectorEncoder",
    "NonFiniteError",
    "OutOfMemory",
    "QualityReport",
    "ReadOnlyError",
    "RecurrentSeq2Seq",
    "SentenceTransformer",
    "SparseEncoder",
    "TextCrossEncoder",
    "TextEmbedding",
    "TextStream",
    "Tokenizer",
    "UnknownKeyError",
    "VerifyReport",
    "__version__",
    "check_folder",
    "compare_dtypes",
    "errors",
    "generation",
    "load_facebook_vectors",
    "ops",
    "pipeline",
    "quantize",
    "scaled_dot_product_attention",
    "util",
    "verify_model",
    "viz",
]


if not TYPE_CHECKING:  # a type checker that sees __getattr__ accepts every unknown name as Any

    def __getattr__(name: str) -> object:
        if name in _HOME:
            value = getattr(importlib.import_module(_HOME[name]), name)
        elif name in _MODULES:
            value = importlib.import_module(f"fastattn.{name}")
        else:
            raise AttributeError(
                f"module 'fastattn' has no attribute {name!r:.80}", name=name, obj=sys.modules[__name__]
            )
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
