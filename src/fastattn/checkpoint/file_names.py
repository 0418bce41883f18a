"""Names of the files in a model folder, shared by hub downloads, tokenizers and `fastattn quantize`."""

from __future__ import annotations

CONFIG_NAME = "config.json"
SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
GENERATION_NAME = "generation_config.json"
OTHER_FORMATS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx")

# Vocabularies and merges. bpe.codes, tekken.json and tiktoken.model are not read, but messages name them.
VOCABULARY_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "spiece.model",
    "spm.model",
    "tokenizer.model",
    "source.spm",
    "bpe.codes",
    "tekken.json",
    "tiktoken.model",
)
TOKENIZER_FILES = (
    *VOCABULARY_FILES,
    "target.spm",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
# For sentence-transformers, which also has one folder per module.
SENTENCE_FILES = ("modules.json", "sentence_*_config.json", "config_sentence_transformers.json")
MODULE_FILES = ("[0-9]*_*/config.json", "[0-9]*_*/model.safetensors")
# From peft: weights to add to those of the model.
ADAPTER_NAME = "adapter_config.json"
ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"
