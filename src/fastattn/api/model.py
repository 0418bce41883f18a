"""The base of all loaded models: their executor, its variants with more outputs, and the path from ids to outputs."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastattn.api.calls import check_call_keywords
from fastattn.api.load_options import check_target
from fastattn.api.loading import load_executor as load_executor
from fastattn.api.loading import load_model
from fastattn.api.reload import (
    Origin,
    Recipe,
    Shared,
    check_unchanged,
    find_shared,
    recipe_of,
    remember,
    verify_files,
)
from fastattn.api.results import Results, empty_outputs
from fastattn.checks import check_flag, quote
from fastattn.errors import FastattnError, InputError
from fastattn.graph.executor import Executor
from fastattn.graph.ir import Program
from fastattn.graph.rewrites import optimize, with_outputs
from fastattn.models.config import CommonConfig
from fastattn.models.inputs import Batch, read_model_batch
from fastattn.models.registry import BuiltModel

if TYPE_CHECKING:
    from typing_extensions import Self

    from fastattn.profiling.profile import Profile
    from fastattn.tokenizer import Tokenizer

_log = logging.getLogger("fastattn")
_Types = TypeVar("_Types")
# Attributes of torch modules, and what to use instead.
_INSTEAD = {
    "bfloat16": 'load it with from_pretrained(..., dtype="bfloat16")',
    "cuda": 'load it with from_pretrained(..., device="cuda")',
    "forward": "call the model itself",
    "get_input_embeddings": "read the table with fastattn.checkpoint.open_checkpoint(model.path)",
    "half": 'load it with from_pretrained(..., dtype="bfloat16")',
    "named_parameters": "read them with fastattn.checkpoint.open_checkpoint(model.path)",
    "parameters": "read them with fastattn.checkpoint.open_checkpoint(model.path), count them with num_parameters()",
    "quantize": "use fastattn.quantize(model.path, directory, dtype=)",
    "resize_token_embeddings": "resize them with transformers, and save the model",
    "save_pretrained": "the files are in model.path; fastattn.quantize writes smaller ones",
    "state_dict": "read the weights with fastattn.checkpoint.open_checkpoint(model.path)",
    "train": "models support only inference",
}


class Model:
    """A loaded model. Several threads may call it; `close` or a `with` block frees the memory.

    A copy shares its weights with the original; either can be closed without affecting the other. A pickle stores the
    path, the options and the SHA-256 of the files. Unpickling loads the model again, once per process.
    """

    def __init__(
        self,
        directory: Path,
        built: BuiltModel,
        executor: Executor,
        *,
        origin: Origin | None = None,
        shared: Shared | None = None,
    ) -> None:
        self._directory, self._built, self._origin, self._shared = directory, built, origin, shared
        self._executor: Executor | None = executor
        # No lock here: if the process forked while another thread held it, the child would wait forever. Two threads
        # that need the same variant at the same time both create it, and one of the two is used.
        self._variants: dict[tuple[bool, bool, bool], Executor] = {(False, False, False): executor}
        self._tokenizers: list[Tokenizer | None] = []
        self._warned: set[str] = set()

    # -- properties ---------------------------------------------------------------------------------------------------

    @property
    def config(self) -> CommonConfig:
        """The options of the checkpoint, as the family's dataclass."""
        return self._built.config

    @property
    def path(self) -> Path:
        """The folder or GGUF file that the model was loaded from."""
        return self._directory

    @property
    def name_or_path(self) -> str:
        """The folder, GGUF file or hub id that was given to from_pretrained."""
        return str(self._directory) if self._origin is None else self._origin.name

    @property
    def device(self) -> str:
        """ "cpu", "cuda" or "numpy"."""
        return "cpu" if self._origin is None else self._origin.options.device

    @property
    def dtype(self) -> str:
        """The storage type of the weights: "float32", "bfloat16", "int8", ..."""
        return str(getattr(self.executor, "dtype", "float32"))

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Return the number of weights; tied weights count once. exclude_embeddings: omit the embedding tables.

        only_trainable changes nothing. Raises DTypeError.
        """
        check_flag("only_trainable", only_trainable)
        total, in_tables = self._built.n_parameters
        return total - in_tables if check_flag("exclude_embeddings", exclude_embeddings) else total

    @property
    def executor(self) -> Executor:
        """The executor of the model's Program. Raises InputError after `close`."""
        if self._executor is None:
            raise InputError("model: expected an open model, got one after close()")
        return self._executor

    @property
    def traced(self) -> Program:
        """The Program as traced from the model code, before the rewrites."""
        return self._built.traced

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer in the model's folder or GGUF file, read on first access; None if there is none.

        It may have more tokens than the model. An id that the model does not have raises an error when it is used.
        Raises ConfigError, ModelFormatError for files that cannot be loaded.
        """
        if not self._tokenizers:
            from fastattn.tokenizer import has_tokenizer, load_tokenizer

            self._tokenizers.append(load_tokenizer(self._directory) if has_tokenizer(self._directory) else None)
        return self._tokenizers[0]

    @property
    def bos_token_id(self) -> int | None:
        """The token that starts a text."""
        return self.config.bos_token_id

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a text."""
        return self.config.eos_token_ids

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.config.model_type} from {str(self._directory)!r}>"

    # -- attributes of torch modules ----------------------------------------------------------------------------------

    if not TYPE_CHECKING:  # otherwise a type checker would accept every name

        def __getattr__(self, name: str) -> Any:
            hint = f"; {_INSTEAD[name]}" if name in _INSTEAD else ""
            raise AttributeError(f"{type(self).__name__} has no {quote(name)}{hint}")

    def eval(self) -> Self:
        """Return the model itself: it is always in evaluation mode."""
        return self

    def to(self, *args: Any, device: Any = None, dtype: Any = None) -> Self:
        """Return the model itself if it has that device and dtype. Otherwise raise InputError."""
        for value in (*args, device, dtype):
            if value is not None:
                check_target(value, self.device, self.dtype)
        return self

    def cpu(self) -> Self:
        """Return the model itself if it is on the CPU. Otherwise raise InputError."""
        return self.to("cpu")

    # -- calls --------------------------------------------------------------------------------------------------------

    def explain_id(self, token_id: int) -> str:
        """Explain an id that the model does not have, for an error message; "" if there is nothing to say."""
        tokenizer = self._tokenizers[0] if self._tokenizers else None
        if tokenizer is None or not self.config.vocab_size <= token_id < tokenizer.id_limit:
            return ""
        try:
            token = tokenizer.convert_ids_to_tokens([token_id])[0]
        except FastattnError:
            return ""
        return (
            f"; it is the tokenizer's token {quote(token)}: the tokenizer has ids up to {tokenizer.id_limit - 1}, but "
            f"vocab_size of config.json is {self.config.vocab_size}"
        )

    def types_of(self, tokenizer: Tokenizer, type_ids: _Types) -> _Types | None:
        """Return a tokenizer's token types for a call; None if the tokenizer or the model has no types."""
        return type_ids if tokenizer.options.type_ids and self.config.type_vocab_size is not None else None

    def profile(
        self,
        input_ids: object,
        attention_mask: object = None,
        token_type_ids: object = None,
        *,
        decode: bool = False,
        seconds: float = 0.3,
    ) -> Profile:
        """Measure where the time goes: a table of the ops with their share, rate and percent of the machine's limit.

        A language model computes the logits of the last token of each sequence, as in `generate`. decode: profile the
        step that adds one token per sequence after these prompts, using their KV caches. seconds: how long to repeat it
        (at least 5 times). The machine's limits are measured before and after. Raises InputError, DTypeError,
        ContextLengthError.
        """
        from fastattn.profiling.profile import profile_step

        batch = self._read(input_ids, attention_mask, token_type_ids)
        types = self.adds_types(batch)
        if check_flag("decode", decode) and types:
            raise InputError("token_type_ids: expected None with decode=True")
        return profile_step(self._variant(False, False, types), batch, decode=decode, seconds=seconds)

    def close(self) -> None:
        """Free the memory; any later use raises InputError. Copies stay open."""
        variants, self._variants, self._executor, self._shared = self._variants, {}, None, None
        for executor in list(variants.values()):
            executor.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- copies and pickles -----------------------------------------------------------------------------------------

    def __copy__(self) -> Self:
        other = self._over(self._share())
        other._tokenizers = list(self._tokenizers)
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        other = self._over(self._share())
        memo[id(self)] = other
        other._tokenizers = copy.deepcopy(self._tokenizers, memo)
        return other

    def __reduce__(self) -> tuple[Callable[[Recipe], Model], tuple[Recipe]]:
        shared = self._share()
        recipe = recipe_of(self._built.task, self._origin)
        remember(recipe, shared)
        return type(self)._load_again, (recipe,)

    @classmethod
    def _load_again(cls, recipe: Recipe) -> Self:
        """Rebuild a pickled model: reuse weights that this process already has, or load the folder."""
        shared = find_shared(recipe)
        if shared is None:
            verify_files(recipe)
            built, executor, origin = load_model(Path(recipe.directory), recipe.task, recipe.options, recipe.name)
            check_unchanged(recipe, origin)
            shared = Shared(origin.directory, built, executor, origin)
            remember(recipe, shared)
        return cls._over(shared)

    def _share(self) -> Shared:
        """Return the weights in a form that copies can share."""
        executor = self.executor
        if self._shared is None:
            self._shared = Shared(
                self._directory, self._built, executor.with_program(self._built.program), self._origin
            )
        return self._shared

    @classmethod
    def _over(cls, shared: Shared) -> Self:
        """Return another model that uses the same weights."""
        executor = shared.root.with_program(shared.built.program)
        return cls(shared.directory, shared.built, executor, origin=shared.origin, shared=shared)

    # -- from ids to outputs ----------------------------------------------------------------------------------------

    def _read(
        self,
        input_ids: object,
        attention_mask: object,
        token_type_ids: object,
        position_ids: object = None,
        others: Mapping[str, Any] | None = None,
    ) -> Batch:
        """Check the input of a call."""
        check_call_keywords(others or {}, type(self).__name__)
        batch = read_model_batch(
            self.config, input_ids, attention_mask, token_type_ids, position_ids, explain=self.explain_id
        )
        if self.config.type_vocab_size is None and token_type_ids is not None and _any(token_type_ids):
            self._warn("token_type_ids are ignored: this model has no token types")
        pad = self.config.pad_token_id
        if attention_mask is None and pad is not None and _may_be_padded(input_ids, batch) and batch.touches(pad):
            self._warn(
                f"input_ids begin or end with pad_token_id {pad}, and there is no attention_mask: as in transformers, "
                "padding is read as text; pass an attention_mask, or lists of different lengths"
            )
        return batch

    def _warn(self, message: str) -> None:
        """Log a warning, once per model."""
        if message not in self._warned:
            self._warned.add(message)
            _log.warning("%s: %s", self._directory, message)

    def trace(self, *, types: bool) -> Program:
        """Return the Program before the rewrites. types: the one for calls with token types, if the family has it."""
        trace = self._built.trace_with_types
        return trace() if types and trace is not None else self.traced

    def adds_types(self, batch: Batch) -> bool:
        """Return whether the batch needs the Program that adds token types."""
        return batch.token_type_ids is not None and self._built.trace_with_types is not None

    def _variant(self, hidden_states: bool, attentions: bool, types: bool = False) -> Executor:
        """Return the executor of the same model with more outputs or inputs; it shares the weights."""
        executor, variants, key = self.executor, self._variants, (hidden_states, attentions, types)
        known = variants.get(key)
        if known is None:
            program = with_outputs(self.trace(types=types), hidden_states=hidden_states, attentions=attentions)
            known = variants.setdefault(key, executor.with_program(optimize(program)))
        return known

    def _run(
        self,
        batch: Batch,
        *,
        hidden_states: bool | None,
        attentions: bool | None,
        logits_to_keep: int = 0,
        wanted: NDArray[np.int32] | None = None,
        key_counts: Sequence[int] | None = None,
    ) -> Results:
        config = self.config
        flags = (
            _flag("output_hidden_states", hidden_states, config.output_hidden_states),
            _flag("output_attentions", attentions, config.output_attentions),
        )
        executor = self._variant(*flags, self.adds_types(batch))
        step = batch.step(logits_to_keep, wanted=wanted, key_counts=key_counts)
        outputs = executor.run(step) if batch.n_tokens else empty_outputs(executor.program)
        return Results(batch, executor.program, outputs, logits_to_keep)


def _flag(name: str, value: bool | None, default: bool) -> bool:
    return default if value is None else check_flag(name, value)


def _may_be_padded(input_ids: object, batch: Batch) -> bool:
    """Return whether all rows have one length, so they may be padded: a 2-D array, or lists of equal length.

    A list of arrays does not count, because tokenizers do not return one.
    """
    if batch.layout != "ragged":
        return True
    first = input_ids[0] if isinstance(input_ids, list | tuple) and input_ids else None
    return isinstance(first, list | tuple) and len(set(batch.counts)) == 1


def _any(types: object) -> bool:
    """Return whether any of these token types, already checked, is not 0."""
    rows = types if isinstance(types, list | tuple) else [types]
    return any(bool(np.any(np.asarray(row))) for row in rows)
