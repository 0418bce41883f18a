"""What all loaded models share: their executor, its variants with more outputs, and the way from ids to outputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from fastattn.checkpoint import TensorInfo, open_checkpoint, read_tensor
from fastattn.checkpoint.hub import resolve
from fastattn.checkpoint.quantised import PackedWeight, Quantised
from fastattn.errors import ConfigError, DTypeError, InputError
from fastattn.graph.executor import Executor, Output
from fastattn.graph.ir import Program
from fastattn.graph.rewrites import optimise, with_outputs
from fastattn.models.generation_config import warn_of_options
from fastattn.models.inputs import Batch, read_batch
from fastattn.models.names import Task
from fastattn.models.outputs import PerToken
from fastattn.models.registry import BuiltModel, ModelConfig, build, find_family

if TYPE_CHECKING:
    from typing_extensions import Self

    from fastattn.models.profile import Profile
    from fastattn.tokenizer import Tokenizer

MAX_THREADS = 1024
DTYPES: Mapping[str, tuple[str, ...]] = {
    "cpu": ("float32", "bfloat16", "int8", "int4"),
    "cuda": ("float32", "tf32", "bfloat16", "float16"),
    "numpy": ("float32", "float64", "bfloat16", "int8", "int4"),
}
KV_DTYPES: Mapping[str, tuple[str, ...]] = {
    "cpu": ("float32", "bfloat16", "int8"),
    "cuda": ("float32", "bfloat16", "float16"),
    "numpy": (),
}


def load_executor(
    program: Program,
    tensors: Mapping[str, TensorInfo],
    *,
    dtype: str,
    device: str,
    threads: int | None,
    kv_dtype: str | None = None,
    head_dtype: str | None = None,
    packed: Mapping[str, PackedWeight] | None = None,
) -> Executor:
    """The executor of a device, with its weights read; packed: those of a quantised directory."""
    if device == "numpy":
        from fastattn.graph.numpy_executor import NumpyExecutor

        return NumpyExecutor(program, lambda part: read_tensor(tensors[part]), dtype=dtype, head_dtype=head_dtype)
    if device == "cuda":
        from fastattn.cuda import CudaExecutor

        found = CudaExecutor(program, tensors, dtype=dtype, kv_dtype=kv_dtype, head_dtype=head_dtype)
        return cast(Executor, found)
    from fastattn.runtime import CpuExecutor

    executor = CpuExecutor(
        program, tensors, dtype=dtype, kv_dtype=kv_dtype, head_dtype=head_dtype, packed=packed, threads=threads
    )
    return cast(Executor, executor)


def load_model(
    path_or_id: str | Path,
    task: Task,
    *,
    dtype: str | None,
    kv_dtype: str | None,
    head_dtype: str | None,
    device: str,
    threads: int | None,
    revision: str | None,
    cache_dir: str | Path | None,
    local_files_only: bool,
    token: str | None,
    verify: Literal["sha256"] | Mapping[str, str] | None,
    check_finite: bool,
) -> tuple[Path, BuiltModel, Executor]:
    """Find, check and load a checkpoint; everything that can be refused is refused before weights are read."""
    _check_options(dtype, kv_dtype, head_dtype, device, threads)
    if device == "cuda":
        from fastattn.cuda import require_device

        require_device()
    directory = resolve(
        path_or_id, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only, token=token
    )
    opened = open_checkpoint(directory, verify=verify, check_finite=check_finite, check_config=find_family)
    with opened as checkpoint:
        quantised = checkpoint.quantised
        if quantised is not None:
            _check_quantised(directory, quantised, dtype, head_dtype, device)
        built = build(checkpoint.config, checkpoint.tensors, task)
        if task == "causal-lm":
            warn_of_options(directory)
        executor = load_executor(
            built.program,
            built.tensors,
            dtype=(dtype if quantised is None else quantised.dtype) or "float32",
            kv_dtype=kv_dtype,
            head_dtype=head_dtype,
            packed=None if quantised is None else quantised.weights,
            device=device,
            threads=threads,
        )
        try:
            checkpoint.check_unchanged()
        except BaseException:
            executor.close()
            raise
    return directory, built, executor


def _check_options(
    dtype: str | None, kv_dtype: str | None, head_dtype: str | None, device: str, threads: int | None
) -> None:
    if not _is_one_of(device, DTYPES):
        raise InputError(f"device: expected one of {', '.join(DTYPES)}, got {device!r}")
    for name, value in (("dtype", dtype), ("head_dtype", head_dtype)):
        # tf32 is how float32 is multiplied, for all weights alike.
        known = tuple(known for known in DTYPES[device] if name == "dtype" or known != "tf32")
        if value is not None and not _is_one_of(value, known):
            raise InputError(f"{name}: expected one of {', '.join(known)} on {device}, got {value!r}")
    if kv_dtype is not None and not _is_one_of(kv_dtype, KV_DTYPES[device]):
        names = ", ".join(KV_DTYPES[device])
        raise InputError(
            f"kv_dtype: expected None{f' or one of {names}' if names else ''} on {device}, got {kv_dtype!r}"
        )
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int | np.integer)):
        raise DTypeError(f"threads: expected an integer or None, got {type(threads).__name__}")
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise InputError(f"threads: expected 1 to {MAX_THREADS}, got {threads}")
    if threads is not None and device == "cuda":
        raise InputError(f"threads: expected None on cuda, got {threads}")


def _is_one_of(name: object, names: Collection[str]) -> bool:
    """Whether a str is one of the names. (A numpy dtype equals its name.)"""
    return isinstance(name, str) and name in names


def _check_quantised(
    directory: Path, quantised: Quantised, dtype: str | None, head_dtype: str | None, device: str
) -> None:
    if device != "cpu":
        raise ConfigError(f"{directory}: its weights are packed for device cpu; {device} needs the float checkpoint")
    for name, asked, kept in (("dtype", dtype, quantised.dtype), ("head_dtype", head_dtype, quantised.head_dtype)):
        if asked is not None and asked != kept:
            raise ConfigError(
                f"{directory}: {name}: this checkpoint is quantised to {kept}, expected None or that, got {asked!r}; "
                "another one needs the float checkpoint"
            )


class Model:
    """A loaded model. Calls from several threads are fine; `close` or a `with` block gives the memory back."""

    def __init__(self, directory: Path, built: BuiltModel, executor: Executor) -> None:
        self._directory, self._built = directory, built
        self._executor: Executor | None = executor
        # No lock around these: a fork while another thread holds it would leave the child waiting. Two threads that
        # need the same at once both make it, and one of them is kept.
        self._variants: dict[tuple[bool, bool], Executor] = {(False, False): executor}
        self._tokenizers: list[Tokenizer | None] = []

    @property
    def config(self) -> ModelConfig:
        """The options of the checkpoint, as the family's dataclass."""
        return self._built.config

    @property
    def path(self) -> Path:
        """The folder that the model was loaded from."""
        return self._directory

    @property
    def executor(self) -> Executor:
        """What runs the model's Program. Raises InputError after `close`."""
        if self._executor is None:
            raise InputError("model: expected an open model, got one after close()")
        return self._executor

    @property
    def traced(self) -> Program:
        """The Program as the model text says it, before the rewrites."""
        return self._built.traced

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer in the model's folder, read when first asked for; None where there is none.

        Raises ConfigError where it has ids that the model has not.
        """
        if not self._tokenizers:
            from fastattn.tokenizer import has_tokenizer, load_tokenizer

            found = load_tokenizer(self._directory) if has_tokenizer(self._directory) else None
            if found is not None and found.id_limit > self.config.vocab_size:
                raise ConfigError(
                    f"{self._directory}: the tokenizer has ids up to {found.id_limit - 1}, "
                    f"but vocab_size of config.json is {self.config.vocab_size}"
                )
            self._tokenizers.append(found)
        return self._tokenizers[0]

    @property
    def bos_token_id(self) -> int | None:
        """The token that starts a text."""
        return self.config.bos_token_id

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a text."""
        return self.config.eos_token_ids

    def profile(
        self,
        input_ids: object,
        attention_mask: object = None,
        token_type_ids: object = None,
        *,
        decode: bool = False,
        seconds: float = 0.3,
    ) -> Profile:
        """Where the time goes: a table of the ops with their share, rate and percent of what the machine can do.

        A language model's logits are those of each last token, as in `generate`. decode: the step of one token a
        sequence after these prompts, from their KV caches. seconds: how long it is repeated (and at least 5 times);
        the machine's limits are measured before and after. Raises InputError, DTypeError, ContextLengthError.
        """
        from fastattn.models.profile import profile_step

        batch = self._read(input_ids, attention_mask, token_type_ids)
        return profile_step(self.executor, batch, decode=decode, seconds=seconds)

    def close(self) -> None:
        """Give the memory back; every use after that is an InputError."""
        variants, self._variants, self._executor = self._variants, {}, None
        for executor in list(variants.values()):
            executor.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.config.model_type} from {str(self._directory)!r}>"

    def _read(self, input_ids: object, attention_mask: object, token_type_ids: object) -> Batch:
        config = self.config
        return read_batch(
            input_ids,
            attention_mask,
            token_type_ids,
            vocab_size=config.vocab_size,
            max_positions=config.max_positions,
            type_vocab_size=config.type_vocab_size,
        )

    def _variant(self, hidden_states: bool, attentions: bool) -> Executor:
        """The executor of the same model with more outputs; it shares the weights."""
        executor, variants = self.executor, self._variants
        known = variants.get((hidden_states, attentions))
        if known is None:
            program = with_outputs(self.traced, hidden_states=hidden_states, attentions=attentions)
            known = variants.setdefault((hidden_states, attentions), executor.with_program(optimise(program)))
        return known

    def _run(self, batch: Batch, *, logits_to_keep: int, hidden_states: bool, attentions: bool) -> Results:
        for name, flag in (("output_hidden_states", hidden_states), ("output_attentions", attentions)):
            if not isinstance(flag, bool):
                raise DTypeError(f"{name}: expected True or False, got {type(flag).__name__}")
        executor = self._variant(hidden_states, attentions)
        outputs = executor.run(batch.step(logits_to_keep)) if batch.n_tokens else _empty_outputs(executor.program)
        return Results(batch, executor.program, outputs, logits_to_keep)


def _empty_outputs(program: Program) -> dict[str, Output]:
    """What a step without tokens gives."""
    outputs: dict[str, Output] = {}
    for name, value in program.outputs.items():
        width = program.values[value].width
        outputs[name] = np.zeros((0, width), np.float32) if width else []
    return outputs


class Results:
    """The outputs of one run, in the layout of the input."""

    def __init__(self, batch: Batch, program: Program, outputs: Mapping[str, Output], logits_to_keep: int) -> None:
        self._batch, self._program, self._outputs, self._keep = batch, program, outputs, logits_to_keep

    def per_token(self, name: str) -> PerToken:
        """An output with one row a token."""
        return self._batch.restore_tokens(self._matrix(name))

    def wanted(self, name: str) -> PerToken:
        """An output with one row a wanted token."""
        return self._batch.restore_wanted(self._matrix(name), self._keep)

    def per_sequence(self, name: str) -> NDArray[Any] | None:
        """An output with one row a sequence, [batch, width]; [width] for a 1-D input; None where there is none."""
        if name not in self._outputs:
            return None
        rows = self._batch.restore_sequences(self._matrix(name))
        return rows[0] if self._batch.layout == "single" else rows

    def hidden_states(self) -> tuple[PerToken, ...] | None:
        """All hidden states, where they were asked for."""
        names = self._numbered("hidden_states")
        return tuple(self.per_token(name) for name in names) or None

    def attentions(self) -> tuple[PerToken, ...] | None:
        """The attention maps of all layers, where they were asked for."""
        names = self._numbered("attentions")
        if not names:
            return None
        heads = {
            f"attentions.{op.attrs['layer']}": int(op.attrs["n_head"])
            for op in self._program.ops
            if op.attrs.get("q_rows")
        }
        maps = []
        for name in names:
            found = cast("list[NDArray[Any]]", self._outputs[name])
            dtype = found[0].dtype if found else np.dtype(np.float32)
            maps.append(self._batch.restore_maps(found, heads[name], dtype))
        return tuple(maps)

    def _matrix(self, name: str) -> NDArray[Any]:
        return cast("NDArray[Any]", self._outputs[name])

    def _numbered(self, group: str) -> list[str]:
        names = [name for name in self._outputs if name.startswith(f"{group}.")]
        return sorted(names, key=lambda name: int(name.rpartition(".")[2]))
