"""A Program that the C++ executor cannot run raises a ConfigError when it is loaded and never crashes when it runs."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fastattn import _core
from fastattn.checkpoint import array_sources, open_checkpoint
from fastattn.errors import ConfigError, FastattnError
from fastattn.executors import cpu
from fastattn.executors.core_executor import spec_of
from fastattn.executors.numpy_executor import NumpyExecutor
from fastattn.graph.ir import Op, Program, Step, Value, Weight
from fastattn.graph.kinds import KINDS
from fastattn.graph.quantize import weight_formats
from fastattn.graph.rewrites import linear_targets, optimize, with_lora, with_outputs, with_pooling
from fastattn.models.registry import build
from fastattn.models.tasks import Task
from tests.program.test_rewrites import ragged_step
from tests.program.test_window_rows import convolution
from tests.reference.bounds import assert_close
from tests.reference.checkpoints import write_bert, write_gpt2
from tests.reference.decoder_program import decoder_program
from tests.reference.positioned_program import positioned_program
from tests.reference.recurrent_program import recurrent_program

Spec = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A tiny model: its weights in C++, and Programs for them as C++ receives them."""

    engine: _core.Engine
    specs: tuple[Spec, ...]
    with_caches: bool = True
    features: tuple[NDArray[np.float32], ...] = ()


def loaded(folder: Path, family: str) -> Loaded:
    models: dict[str, tuple[Any, Task]] = {"gpt2": (write_gpt2, "causal-lm"), "bert": (write_bert, "encoder")}
    writer, task = models[family]
    checkpoint = open_checkpoint(writer(folder / family))
    built = build(checkpoint.config, checkpoint.tensors, task)
    marked = with_outputs(built.traced, hidden_states=True, attentions=True)
    programs = [built.program, optimize(marked), marked]
    if task == "causal-lm":
        programs.append(optimize(with_lora(built.traced, linear_targets(built.traced).values())))
    else:
        programs += [optimize(with_pooling(built.traced, kind, normalize=True)) for kind in ("mean", "first")]
    engine = _core.Engine(2)
    for program in (built.program, marked):  # the fused weights and those in the file
        weights = {name: weight for name, weight in program.weights.items() if not engine.has(name)}
        part = Program((), (), weights, {}, 0, 0, 0, 0, False)
        cpu._load(engine, part.weights, built.tensors, weight_formats(part, "float32"))
    return Loaded(engine, tuple(spec_of(program, "float32") for program in programs))


def loaded_decoder() -> Loaded:
    engine, made = _core.Engine(2), decoder_program(layers=2, heads=4, window=5, bias="alibi", scaled=True)
    marked = with_outputs(made.program, attentions=True)
    programs = [
        made.program,
        marked,
        decoder_program(which="last", layers=2, heads=4, softcap=3.0, scaled=True).program,
    ]
    cpu._load(engine, made.program.weights, made.sources, weight_formats(made.program, "float32"))
    return Loaded(engine, tuple(spec_of(program, "float32") for program in programs))


def loaded_positions() -> Loaded:
    engine, made = _core.Engine(2), positioned_program()
    programs = [made.program, with_outputs(made.program, attentions=True), positioned_program(which="first").program]
    cpu._load(engine, made.program.weights, made.sources, weight_formats(made.program, "float32"))
    return Loaded(engine, tuple(spec_of(program, "float32") for program in programs), with_caches=False)


def loaded_windows() -> Loaded:
    engine, made = _core.Engine(2), convolution()
    cpu._load(engine, made.program.weights, made.sources, weight_formats(made.program, "float32"))
    return Loaded(engine, (spec_of(made.program, "float32"),), with_caches=False)


def loaded_recurrent() -> Loaded:
    engine, programs = _core.Engine(2), []
    step = ragged_step(np.random.default_rng(3))
    rows = (len(step.token_ids), 3), (len(step.cu_seqlens) - 1, 5)
    features = tuple(np.ones(shape, np.float32) for shape in rows)
    for kind in ("elmo", "gru"):
        made = recurrent_program(kind)
        prefixed = {name: replace(weight, parts=(weight.parts[0],)) for name, weight in made.program.weights.items()}
        names = {name: f"{kind}.{name}" for name in prefixed}
        weights = {names[name]: weight for name, weight in prefixed.items()}
        cpu._load(engine, weights, made.sources, dict.fromkeys(weights, "float32"))
        ops = tuple(replace(op, weights=tuple(names[key] for key in op.weights)) for op in made.program.ops)
        programs.append(replace(made.program, weights=weights, ops=ops))
    specs = tuple(spec_of(program, "float32") for program in programs)
    return Loaded(engine, specs, with_caches=False, features=features)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Loaded]:
    folder = tmp_path_factory.mktemp("models")
    return [
        *(loaded(folder, family) for family in ("gpt2", "bert")),
        loaded_decoder(),
        loaded_positions(),
        loaded_windows(),
        loaded_recurrent(),
    ]


def cache_of(executor: _core.Executor, spec: Spec) -> _core.Cache:
    """Return a cache with an adapter for the first lora op, if the Program has one."""
    for kind, inputs, output, _, attrs in spec["ops"]:
        width, depth = (spec["values"][value][1] for value in (output, *inputs[1:2])) if kind == "lora" else (0, 0)
        if 0 < width < 1000 and 0 < depth < 1000:
            matrices = (np.ones((2, depth), np.float32), np.ones((2, width), np.float32))
            return executor.new_cache(_core.Adapter([(attrs["target"], *matrices)]))
    return executor.new_cache()


def run(model: Loaded, spec: Spec, *, cached: bool) -> list[Any]:
    executor = _core.Executor(model.engine, spec)
    step = ragged_step(np.random.default_rng(3))
    caches = [executor.new_cache() for _ in range(2)] + [cache_of(executor, spec)] if cached else None
    arrays = (step.token_ids, step.cu_seqlens, step.positions, step.wanted, step.token_type_ids)
    return executor.run(*arrays, caches, features=model.features)


def test_the_programs_of_the_models_are_accepted(models: list[Loaded]) -> None:
    for model in models:
        for spec in model.specs:
            for cached in (False, True) if model.with_caches else (False,):
                assert len(run(model, spec, cached=cached)) == len(spec["outputs"])


NUMBERS = (-(2**31), -1, *range(8), 11, 12, 13, 20, 24, 36, 48, 257, 2**15, 2**31 - 1, 2**31, 2**62)
UNKNOWN_KIND = "softmax"
WORDS = ("tokens", "wanted", "sequences", "first", "last", "token_ids", "positions", "token_type_ids", "mean", "max",
         "none", "relu", "")  # fmt: skip
ATTRS = ("activation", "index", "which", "q_rows", "pool", "has_bias", "has_residual", "causal", "offset", "layer",
         "n_head", "n_kv_head", "head_dim", "eps", "scale", "groups", "dimensions", "interleaved", "rows", "size",
         "window", "softcap", "bias_positions", "has_columns", "has_position_keys", "n_columns", "column_positions",
         "hidden", "reverse", "has_state", "cells", "cell_clip", "has_projection", "has_weight", "inside",
         "target", "unheard")  # fmt: skip
numbers = st.sampled_from(NUMBERS)
small = st.integers(0, 40)
anything = st.one_of(numbers, st.sampled_from(WORDS), st.booleans(), st.floats(), st.none(), st.just([]))


def change_list(draw: Any, items: list[Any]) -> None:
    """Change, add or remove an entry."""
    what = draw(st.sampled_from(("set", "add", "drop", "swap")))
    if what == "add" or not items:
        items.append(draw(st.one_of(small, numbers)))
    elif what == "drop":
        items.pop(draw(st.integers(0, len(items) - 1)))
    elif what == "swap":
        items.reverse()
    else:
        items[draw(st.integers(0, len(items) - 1))] = draw(st.one_of(small, numbers))


def change_op(draw: Any, spec: Spec) -> None:
    index = draw(st.integers(0, len(spec["ops"]) - 1))
    kind, inputs, output, weights, attrs = spec["ops"][index]
    what = draw(st.sampled_from(("kind", "inputs", "output", "weights", "attr", "attr", "less", "drop", "twice")))
    if what == "kind":
        kind = draw(st.sampled_from([*KINDS, UNKNOWN_KIND]))
    elif what == "inputs":
        change_list(draw, inputs)
    elif what == "output":
        output = draw(st.one_of(small, numbers))
    elif what == "weights":
        change_list(draw, weights)
    elif what == "attr":
        own = [name for name in attrs if name != "width"]
        attrs[draw(st.sampled_from([*own, *ATTRS]))] = draw(anything)
    elif what == "less" and attrs:
        attrs.pop(draw(st.sampled_from(sorted(attrs))))
    elif what == "drop":
        del spec["ops"][index]
        return
    elif what == "twice":
        spec["ops"].insert(draw(st.integers(0, len(spec["ops"]))), copy.deepcopy(spec["ops"][index]))
        return
    spec["ops"][index] = (kind, inputs, output, weights, attrs)


def change_value(draw: Any, spec: Spec) -> None:
    index = draw(st.integers(0, len(spec["values"]) - 1))
    rows, width = spec["values"][index]
    if draw(st.booleans()):
        rows = draw(st.sampled_from(("tokens", "wanted", "sequences", "else")))
    else:
        width = draw(st.one_of(small, numbers))
    spec["values"][index] = (rows, width)


def change_size(draw: Any, spec: Spec) -> None:
    spec[draw(st.sampled_from(("n_layer", "n_kv_head", "head_dim", "max_positions")))] = draw(numbers)


def change_names(draw: Any, spec: Spec) -> None:
    if draw(st.booleans()):
        change_list(draw, spec["outputs"])
    else:
        i, j = (draw(st.integers(0, len(spec["weights"]) - 1)) for _ in range(2))
        spec["weights"][i] = spec["weights"][j]


def drop_field(draw: Any, spec: Spec) -> None:
    name = draw(st.sampled_from(sorted(spec)))
    if draw(st.booleans()):
        del spec[name]
    else:
        spec[name] = draw(anything)


CHANGES: tuple[Callable[[Any, Spec], None], ...] = (
    change_op, change_op, change_op, change_op, change_value, change_value, change_size, change_names, change_names,
)  # fmt: skip


@settings(max_examples=1500, derandomize=True, database=None)
@given(data=st.data())
def test_a_changed_program_is_refused_or_runs(models: list[Loaded], data: st.DataObject) -> None:
    """Any change gives a ConfigError, a step with as many outputs, or an error of the step itself."""
    model = data.draw(st.sampled_from(models))
    spec = copy.deepcopy(data.draw(st.sampled_from(model.specs)))
    for _ in range(data.draw(st.integers(1, 3))):
        data.draw(st.sampled_from(CHANGES))(data.draw, spec)
    if data.draw(st.integers(0, 19)) == 0:
        drop_field(data.draw, spec)
    try:
        _core.Executor(model.engine, spec)
    except ConfigError:
        return
    for cached in (False, True):
        with contextlib.suppress(FastattnError):
            assert len(run(model, spec, cached=cached)) == len(spec["outputs"])


def change_at(models: list[Loaded], kind: str, change: Callable[[list[Any], Spec], None]) -> tuple[_core.Engine, Spec]:
    """Return a spec with a change in the first op of a kind."""
    for model in models:
        for spec in model.specs:
            for index, op in enumerate(spec["ops"]):
                if op[0] == kind:
                    changed = copy.deepcopy(spec)
                    fields = list(changed["ops"][index])
                    change(fields, changed)
                    changed["ops"][index] = tuple(fields)
                    return model.engine, changed
    raise AssertionError(kind)


def widen(fields: list[Any], spec: Spec) -> None:
    rows, width = spec["values"][fields[2]]
    spec["values"][fields[2]] = (rows, width + 1)


def other_rows(fields: list[Any], spec: Spec) -> None:
    rows, width = spec["values"][fields[2]]
    spec["values"][fields[2]] = ("sequences" if rows == "tokens" else "tokens", width)


def one_input_more(fields: list[Any], spec: Spec) -> None:
    fields[1].append(0)


def one_input_less(fields: list[Any], spec: Spec) -> None:
    del fields[1][-1:]


def one_weight_more(fields: list[Any], spec: Spec) -> None:
    fields[3].append(0)


def one_weight_less(fields: list[Any], spec: Spec) -> None:
    del fields[3][-1:]


@pytest.mark.parametrize("change", [widen, other_rows, one_input_more, one_input_less, one_weight_more])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_op_is_checked(models: list[Loaded], kind: str, change: Any) -> None:
    if change is one_input_less and kind in ("embedding", "features"):  # they have no inputs
        change = one_weight_less if kind == "embedding" else other_rows
    engine, spec = change_at(models, kind, change)
    with pytest.raises(ConfigError, match=r"^program: "):
        _core.Executor(engine, spec)


@pytest.mark.parametrize("kind", ["layer_norm", "linear", "embedding"])
def test_a_missing_weight_is_refused(models: list[Loaded], kind: str) -> None:
    engine, spec = change_at(models, kind, one_weight_less)
    with pytest.raises(ConfigError, match="weights, got"):
        _core.Executor(engine, spec)


def test_no_heads_are_refused(models: list[Loaded]) -> None:
    engine, spec = change_at(models, "attention", lambda fields, spec: spec.update(n_kv_head=0))
    with pytest.raises(ConfigError, match="at least one head"):
        _core.Executor(engine, spec)


@pytest.mark.parametrize("offset", [0, 8])
def test_a_linear_that_reads_columns_of_its_residual(tmp_path: Path, offset: int) -> None:
    """The result must not overwrite the residual, because other columns of it are read later."""
    rng, width, inner = np.random.default_rng(0), 200, 192
    tensors = {"table": rng.normal(size=(31, width)), "matrix": rng.normal(size=(width, inner)) / inner**0.5}
    single = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    program = Program(
        values=(Value("tokens", width), Value("tokens", inner), Value("tokens", width), Value("tokens", width)),
        ops=(
            Op("embedding", (), 0, ("table",), {"index": "token_ids", "offset": 0}),
            Op("slice", (0,), 1, (), {"offset": offset, "width": inner}),
            Op("linear", (1, 0), 2, ("matrix",), {"activation": "none", "has_bias": False, "has_residual": True}),
            Op("activation", (2,), 3, (), {"activation": "none"}),
        ),
        weights={
            "table": Weight(("table",), "table", (31, width)),
            "matrix": Weight(("matrix",), "matrix", (width, inner)),
        },
        outputs={"y": 3},
        n_layer=0,
        n_kv_head=1,
        head_dim=1,
        max_positions=100,
        causal=False,
    )
    engine = _core.Engine(2)
    for name, weight in program.weights.items():
        path = tmp_path / name
        single[name].tofile(path)
        with open(path, "rb") as file:
            engine.load(name, weight.use, "float32", [(name, "F32", *weight.shape, (file.fileno(), 0))])
    ids = rng.integers(0, 31, 60).astype(np.int32)
    step = Step(ids, np.array([0, 60], np.int32), np.arange(60, dtype=np.int32), ids[:0])
    expected = NumpyExecutor(program, array_sources(single)).run(step)["y"]
    executor = _core.Executor(engine, spec_of(program, "float32"))
    (found,) = executor.run(step.token_ids, step.cu_seqlens, step.positions, step.wanted)
    assert_close(found, np.asarray(expected), program, longest=60)
