"""CTranslate2. Its encoders return hidden states, so a classification head is two numpy products."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ctranslate2
import numpy as np

from fastattn.bench.libraries.base import Array, Ids, Job, Source


def _token(i: int) -> str:
    return f"t{i}"


class _Vocabulary:
    """Replaces the tokenizer, which a checkpoint may lack: every id is a token."""

    bos_token = eos_token = unk_token = pad_token = _token(0)

    def __init__(self, size: int) -> None:
        self.size = size

    def get_vocab(self) -> dict[str, int]:
        return {_token(i): i for i in range(self.size)}


def convert(job: Job) -> None:
    """Write the model in the library's format (it is quantized when loaded).

    Needs PyTorch, which the process that runs the model does not load.
    """
    from ctranslate2.converters import TransformersConverter

    vocabulary = _Vocabulary(Source(job).config.vocab_size)

    class Converter(TransformersConverter):  # type: ignore[misc]
        def load_tokenizer(self, *_: Any, **__: Any) -> _Vocabulary:
            return vocabulary

        def load_model(self, *names: Any, **options: Any) -> Any:
            model = super().load_model(*names, **options)
            if not hasattr(model.config, "position_embedding_type"):  # removed in transformers 5, still read here
                model.config.position_embedding_type = "absolute"
            return model

    Converter(str(job.path)).convert(str(job.folder), force=True)


class Model:
    """A generator, or an encoder with its head, in float32 or int8."""

    def __init__(self, job: Job) -> None:
        options = {"device": "cpu", "inter_threads": 1, "intra_threads": job.threads, "compute_type": job.dtype}
        folder = str(job.folder)
        self.task = job.task
        self.head: Callable[[Array], Array] | None = None
        if job.task == "causal-lm":
            self.model = ctranslate2.Generator(folder, **options)
        else:
            self.model = ctranslate2.Encoder(folder, **options)
            self.head = Source(job).head() if job.task == "sequence-classification" else None

    def forward(self, ids: Ids) -> Array:
        """Return the logits of the first token after the prompts, or of the sequences."""
        if self.task == "causal-lm":
            return np.stack([np.array(result.logits[0]).reshape(-1) for result in self._generate(ids, 1, logits=True)])
        hidden = np.array(self.model.forward_batch(ids).last_hidden_state)[:, 0]
        return hidden if self.head is None else self.head(hidden)

    def decode(self, ids: Ids, n_new: int) -> tuple[Ids, float]:
        """Run the library's own loop."""
        marks: list[float] = []

        def callback(step: Any) -> bool:
            if not marks:
                marks.append(time.perf_counter())
            return False

        results = self._generate(ids, n_new, callback=callback)
        return [result.sequences_ids[0] for result in results], time.perf_counter() - marks[0]

    def _generate(self, ids: Ids, n_new: int, *, logits: bool = False, callback: Any = None) -> list[Any]:
        prompts = [[_token(i) for i in row] for row in ids]
        results: list[Any] = self.model.generate_batch(
            prompts, max_length=n_new, min_length=n_new, sampling_topk=1, beam_size=1, end_token=[],
            include_prompt_in_result=False, return_logits_vocab=logits, callback=callback,
        )  # fmt: skip
        return results
