"""`RecurrentSeq2Seq`: translates with a recurrent encoder and a decoder with attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastattn.api.load_args import RunArgs
from fastattn.api.load_options import read_options
from fastattn.api.loading import check_device, load_executor
from fastattn.checkpoint import open_checkpoint
from fastattn.checks import check_count, check_number, check_path, quote
from fastattn.errors import ConfigError, DTypeError, InputError, NonFiniteError
from fastattn.graph.executor import Executor
from fastattn.graph.ir import Program
from fastattn.jsonfile import read_json
from fastattn.models.ragged_step import ragged_step
from fastattn.models.recurrent import RecurrentConfig, read_config, trace
from fastattn.tasks.recurrent_search import Hypothesis, Search, StepResult

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

SOURCE_VOCAB, TARGET_VOCAB = "source_vocab.json", "target_vocab.json"
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Seq2SeqOutput:
    """The results of `RecurrentSeq2Seq.generate`, one entry per source.

    sequences: target ids without eos_token_id. texts: the same as text; None without target_vocab.json. scores: sum of
    the log-probabilities, eos_token_id included, divided by length ** length_penalty. attentions: float32 [n_target,
    n_source]: row i is the decoder's attention to the source when it produced id i; its sum is 1.
    source_tokens, target_tokens:
    the labels of the columns and rows; ids as text without a vocabulary.
    """

    sequences: list[list[int]]
    texts: list[str] | None
    scores: list[float]
    attentions: list[Floats]
    source_tokens: list[list[str]]
    target_tokens: list[list[str]]


class RecurrentSeq2Seq:
    """A recurrent encoder, and a decoder with the attention of Bahdanau or Luong.

    config: the options of config.json. The result for a source does not depend on the others in a call, or on threads.
    """

    config: RecurrentConfig
    _encoder: Executor
    _decoder: Executor
    _source: Mapping[str, int] | None
    _target: Sequence[str] | None

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Unpack[RunArgs]) -> Self:
        """Load a folder with config.json, model.safetensors, and for texts source_vocab.json and target_vocab.json.

        options: dtype, device and threads as in `AutoModel.from_pretrained`. Raises ModelNotFoundError, ConfigError,
        ModelFormatError, InputError, DTypeError.
        """
        load, _ = read_options(dict(options))
        if load.share_weights:
            raise InputError("share_weights: expected False for a recurrent model, got True")
        if load.kv_dtype is not None:
            raise InputError(f"kv_dtype: expected None for a recurrent model, got {quote(load.kv_dtype)}")
        check_device(load)
        path, model = check_path("folder", folder), cls()
        run: dict[str, Any] = {"dtype": load.dtype or "float32", "device": load.device, "threads": load.threads}
        with open_checkpoint(path) as checkpoint:
            if checkpoint.quantized is not None:
                raise ConfigError(f"{path}: expected a folder of floats, got a quantized one; pass dtype= instead")
            model.config = read_config(checkpoint.config, str(path / "config.json"))
            programs = trace(model.config, checkpoint.tensors, str(path))
            model._encoder, model._decoder = (
                load_executor(program, _used(program, programs.sources), **run)
                for program in (programs.encoder, programs.decoder)
            )
        source = _read_vocab(path / SOURCE_VOCAB, model.config.source_vocab_size)
        model._source = None if source is None else {token: i for i, token in enumerate(source)}
        model._target = _read_vocab(path / TARGET_VOCAB, model.config.target_vocab_size)
        return model

    def generate(
        self, sources: Any, *, num_beams: int = 1, max_new_tokens: int = 100, length_penalty: float = 1.0
    ) -> Seq2SeqOutput:
        """Translate a text, a list of texts, a list of ids, or a list of lists of ids.

        num_beams: 1 takes the most probable id in each step; more is beam search. max_new_tokens: the longest result,
        eos_token_id included. length_penalty: above 0 prefers longer results. Raises InputError, DTypeError,
        ConfigError for texts without a vocabulary, and NonFiniteError.
        """
        check_count("num_beams", num_beams, low=1, high=1024)
        check_count("max_new_tokens", max_new_tokens, low=1)
        check_number("length_penalty", length_penalty)
        ids = self._ids(sources)
        keys, values, states = self._encode(ids)
        feed = np.zeros(self.config.feed_width, np.float32) if self.config.input_feeding else None
        searches = [
            Search(
                Hypothesis((), 0.0, state, feed),
                eos_token_id=self.config.eos_token_id,
                num_beams=num_beams,
                max_new_tokens=max_new_tokens,
                length_penalty=length_penalty,
            )
            for state in states
        ]
        while any(search.live for search in searches):
            live = [(i, hypothesis) for i, search in enumerate(searches) for hypothesis in search.live]
            results = iter(self._step(live, keys, values))
            for search in searches:
                if search.live:
                    search.advance([next(results) for _ in search.live])
        return self._output(ids, [search.best for search in searches], length_penalty)

    def close(self) -> None:
        """Free the memory of the model."""
        self._encoder.close()
        self._decoder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ids(self, sources: Any) -> list[list[int]]:
        """Return the ids of each source."""
        one = isinstance(sources, str) or (
            isinstance(sources, Sequence | np.ndarray)
            and len(sources) > 0
            and all(isinstance(item, int | np.integer) and not isinstance(item, bool) for item in sources)
        )
        given = [sources] if one else sources
        if isinstance(given, bytes) or not isinstance(given, Sequence | np.ndarray):
            raise DTypeError(f"sources: expected texts or lists of ids, got {quote(sources)}")
        found = []
        for i, source in enumerate(given):
            ids = self._encode_text(source) if isinstance(source, str) else self._check_ids(source, i)
            if isinstance(source, str) and self.config.append_eos:
                ids.append(self.config.eos_token_id)
            if not ids:
                raise InputError(f"sources[{i}]: expected at least one token, got none")
            found.append(ids)
        return found

    def _check_ids(self, source: Any, index: int) -> list[int]:
        name, most = f"sources[{index}]", self.config.source_vocab_size - 1
        if isinstance(source, bytes) or not isinstance(source, Sequence | np.ndarray):
            raise DTypeError(f"{name}: expected a text or a list of ids, got {quote(source)}")
        return [check_count(f"{name}[{i}]", value, low=0, high=most) for i, value in enumerate(source)]

    def _encode_text(self, text: str) -> list[int]:
        """Return the ids of a text."""
        if self._source is None:
            raise ConfigError(f"sources: expected ids, because the model has no {SOURCE_VOCAB}, got a text")
        ids, unknown = [], self.config.unk_token_id
        for token in list(text) if self.config.tokens == "characters" else text.split():
            found = self._source.get(token, unknown)
            if found is None:
                raise InputError(f"sources: expected tokens of {SOURCE_VOCAB}, got {quote(token)}")
            ids.append(found)
        return ids

    def _encode(self, ids: Sequence[Sequence[int]]) -> tuple[list[Floats], list[Floats], list[Floats]]:
        """Return keys, values and first state of each source."""
        if not ids:
            return [], [], []
        flat = np.array([token for source in ids for token in source], np.int32)
        step = ragged_step([len(source) for source in ids], flat)
        found = {name: np.asarray(rows, np.float32) for name, rows in self._encoder.run(step).items()}
        keys, values = (np.split(found[name], step.cu_seqlens[1:-1]) for name in ("keys", "values"))
        return keys, values, list(found["state"])

    def _step(
        self, live: Sequence[tuple[int, Hypothesis]], keys: Sequence[Floats], values: Sequence[Floats]
    ) -> list[StepResult]:
        """Run one step of the decoder for all hypotheses, each with the number of its source."""
        lengths = [len(keys[i]) for i, _ in live]
        last = [found.ids[-1] if found.ids else self.config.bos_token_id for _, found in live]
        rows = [np.concatenate([of[i] for i, _ in live]) for of in (keys, values)]
        rows.append(np.stack([found.state for _, found in live]).astype(np.float32))
        if self.config.input_feeding:
            rows.append(np.stack([found.feed for _, found in live if found.feed is not None]).astype(np.float32))
        step = ragged_step(lengths, np.repeat(np.array(last, np.int32), lengths), features=tuple(rows))
        found = {name: np.asarray(value, np.float32) for name, value in self._decoder.run(step).items()}
        if not np.isfinite(found["logits"]).all():
            raise NonFiniteError("logits: expected finite numbers, got NaN or infinity; check the weights of the model")
        probs = np.split(found["probs"][:, 0], step.cu_seqlens[1:-1])
        feeds = list(found["feed"]) if self.config.input_feeding else [None] * len(live)
        return [
            StepResult(logits, state.copy(), None if feed is None else feed.copy(), part.copy())
            for logits, state, feed, part in zip(found["logits"], found["state"], feeds, probs, strict=True)
        ]

    def _output(self, ids: Sequence[Sequence[int]], best: Sequence[Hypothesis], length_penalty: float) -> Seq2SeqOutput:
        sequences, attentions = [], []
        for source, hypothesis in zip(ids, best, strict=True):
            kept = [token for token in hypothesis.ids if token != self.config.eos_token_id]
            sequences.append(kept)
            rows = np.zeros((len(kept), len(source)), np.float32)
            rows[:] = np.array(hypothesis.probs[: len(kept)], np.float32).reshape(len(kept), len(source))
            attentions.append(rows)
        labels = None if self._source is None else list(self._source)
        named = [_names(target, self._target) for target in sequences]
        between = "" if self.config.tokens == "characters" else " "
        return Seq2SeqOutput(
            sequences=sequences,
            texts=None if self._target is None else [between.join(tokens) for tokens in named],
            scores=[hypothesis.score(length_penalty) for hypothesis in best],
            attentions=attentions,
            source_tokens=[_names(source, labels) for source in ids],
            target_tokens=named,
        )


def _names(ids: Sequence[int], vocab: Sequence[str] | None) -> list[str]:
    return [str(token) if vocab is None else vocab[token] for token in ids]


def _used(program: Program, sources: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sources of a Program's weights."""
    return {part: sources[part] for weight in program.weights.values() for part in weight.parts}


def _read_vocab(path: Path, size: int) -> list[str] | None:
    """Read a list of tokens; None if there is no file. Raises ConfigError."""
    if not path.exists():
        return None
    found = read_json(path)
    good = isinstance(found, list) and len(found) == size and all(isinstance(token, str) for token in found)
    if not good or len(set(found)) != size:
        raise ConfigError(f"{path}: expected a list of {size} different tokens, got {quote(found)}")
    return list(found)
