"""Rewrites of a Program: small functions Program -> Program that change the work, but no bit of the result.

Every output element is computed by the same additions and multiplications in the same order before and after. Fused
epilogues only save a pass over memory, merged linears only put panels of weights side by side, and unused rows are
dropped. The keys and parts of the weights do not depend on the requested outputs, so two optimized Programs of one
model share one set of packed weights.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from fastattn.errors import ConfigError
from fastattn.graph.ir import Attr, Op, Program, Value, Weight
from fastattn.graph.kinds import KINDS, ROWS_OF, Pooling
from fastattn.graph.quantize import SMALL_MATRIX


def optimize(program: Program) -> Program:
    """Apply all rewrites, in an order in which each enables the next."""
    program = replace(program, marks={})
    for rewrite in (fuse_activation, fuse_residual, merge_qkv, sink_gathers, drop_dead):
        program = rewrite(program)
    return program


def _readers(program: Program) -> dict[int, list[int]]:
    """Map each value to the ops that read it; an output or a mark counts as reader -1."""
    readers: dict[int, list[int]] = defaultdict(list)
    for position, op in enumerate(program.ops):
        for value in op.inputs:
            readers[value].append(position)
    for value in (*program.outputs.values(), *program.marks.values()):
        readers[value].append(-1)
    return readers


def _writers(ops: Iterable[Op | None]) -> dict[int, int]:
    return {op.output: position for position, op in enumerate(ops) if op is not None}


def fuse_activation(program: Program) -> Program:
    """Fuse a linear and an activation that is its only reader into one linear with the activation in its epilogue."""
    readers, writers = _readers(program), _writers(program.ops)
    ops: list[Op | None] = list(program.ops)
    for position, op in enumerate(program.ops):
        if op.kind != "activation":
            continue
        source = writers[op.inputs[0]]
        linear = ops[source]
        if linear is None or linear.kind != "linear" or readers[linear.output] != [position]:
            continue
        if linear.attrs["activation"] == "none" and not linear.attrs["has_residual"]:
            attrs = {**linear.attrs, "activation": op.attrs["activation"]}
            ops[source], ops[position] = None, replace(linear, output=op.output, attrs=attrs)
    return replace(program, ops=tuple(op for op in ops if op is not None))


def fuse_residual(program: Program) -> Program:
    """Fuse add(x, linear), if only the add reads the linear, into one linear that adds x in its epilogue."""
    readers, writers = _readers(program), _writers(program.ops)
    ops: list[Op | None] = list(program.ops)
    for position, op in enumerate(program.ops):
        if op.kind != "add":
            continue
        for side in (1, 0):
            source = writers[op.inputs[side]]
            linear = ops[source]
            if linear is None or linear.kind != "linear" or readers[linear.output] != [position]:
                continue
            if linear.attrs["has_residual"]:
                continue
            attrs = {**linear.attrs, "has_residual": True}
            inputs = (*linear.inputs, op.inputs[1 - side])
            ops[source], ops[position] = None, replace(linear, inputs=inputs, output=op.output, attrs=attrs)
            break
    return replace(program, ops=tuple(op for op in ops if op is not None))


def merge_qkv(program: Program) -> Program:
    """Merge three linears of one input that feed an attention as q, k, v into one linear and three column slices.

    Adapters may be added in between, and queries and keys may be normalized and rotated.
    """
    writers = _writers(program.ops)
    before: dict[int, list[Op]] = {}
    replaced: set[int] = set()
    values, weights = list(program.values), dict(program.weights)
    for attention in program.ops:
        if attention.kind != "attention":
            continue
        positions = [_source(program, writers, value) for value in attention.inputs]
        linears = [program.ops[position] for position in positions]
        if len(set(positions)) < 3 or replaced.intersection(positions) or not _mergeable(program, linears):
            continue
        merged, output = _merge(program, linears, len(values), weights)
        values.append(output)
        before[min(positions)] = [merged, *_slices(program, linears, merged.output)]
        replaced.update(positions)
    ops: list[Op] = []
    for position, op in enumerate(program.ops):
        ops.extend(before.get(position, ()))
        if position not in replaced:
            ops.append(op)
    used = {key for op in ops for key in op.weights}
    kept = {key: weight for key, weight in weights.items() if key in used}
    return replace(program, values=tuple(values), ops=tuple(ops), weights=kept)


def _source(program: Program, writers: Mapping[int, int], value: int) -> int:
    """Return the position of the op that computed `value`, before adapters, norms and rotations of its columns."""
    position = writers[value]
    while program.ops[position].kind in ("lora", "rms_norm", "rotary"):
        position = writers[program.ops[position].inputs[0]]
    return position


def _mergeable(program: Program, linears: Sequence[Op]) -> bool:
    """Return whether three linears can be one. Small matrices are not quantized, so they merge only with each other."""
    first = linears[0]
    keys = [key for op in linears for key in op.weights]
    users = [key for op in program.ops for key in op.weights if key in keys]
    return (
        all(op.kind == "linear" and op.inputs == first.inputs for op in linears)
        and all(op.attrs == first.attrs and op.attrs["activation"] == "none" for op in linears)
        and not first.attrs["has_residual"]
        and len({program.weights[op.weights[0]].transposed for op in linears}) == 1
        and len({program.weights[op.weights[0]].shape[0] < SMALL_MATRIX for op in linears}) == 1
        and len(users) == len(keys)
    )


def _merge(program: Program, linears: Sequence[Op], output: int, weights: dict[str, Weight]) -> tuple[Op, Value]:
    """Return one linear over the stacked weights, and add them to `weights`."""
    keys = []
    for group in zip(*(op.weights for op in linears), strict=True):
        sources = [program.weights[key] for key in group]
        parts = tuple(part for source in sources for part in source.parts)
        shape = (sum(source.shape[0] for source in sources), *sources[0].shape[1:])
        keys.append("+".join(parts))
        weights[keys[-1]] = replace(sources[0], parts=parts, shape=shape)
    width = sum(program.values[op.output].width for op in linears)
    merged = replace(linears[0], output=output, weights=tuple(keys))
    return merged, replace(program.values[linears[0].output], width=width)


def _slices(program: Program, linears: Sequence[Op], source: int) -> list[Op]:
    slices, offset = [], 0
    for op in linears:
        width = program.values[op.output].width
        attrs: dict[str, Attr] = {"offset": offset, "width": width}
        slices.append(Op("slice", (source,), op.output, (), attrs))
        offset += width
    return slices


def sink_gathers(program: Program) -> Program:
    """Move gather_rows toward the inputs: if only gathered rows of a value are read, only those are computed.

    Attention still reads the keys and values of all tokens, but only the gathered rows are its queries.
    """
    return _Sink(program).run()


class _Sink:
    """A backward pass finds which rows of every value are read; a forward pass emits the ops for those rows."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.values: list[Value] = list(program.values)
        self.ops: list[Op] = []
        self.computed: dict[int, str] = {}  # old value -> the row selection that it is computed for
        self.renamed: dict[tuple[int, str], int] = {}  # (old value, selection) -> value

    def run(self) -> Program:
        chosen = self.choose()
        for op in self.program.ops:
            reads = KINDS[op.kind].reads
            if reads == "gather":
                self.rename(op, self.get(op.inputs[0], str(op.attrs["which"])))
            elif reads == "view":
                self.emit(op, self.computed[op.inputs[0]])
            else:
                self.emit(op, chosen.get(op.output, self.natural(op.output)))
        outputs = {name: self.get(value, self.natural(value)) for name, value in self.program.outputs.items()}
        return replace(self.program, values=tuple(self.values), ops=tuple(self.ops), outputs=outputs)

    def natural(self, value: int) -> str:
        """Return the kind of rows that a value has in the original Program."""
        return self.program.values[value].rows

    def choose(self) -> dict[int, str]:
        """Map each value that may be computed for a selection of its rows to that selection."""
        asked: dict[int, set[str]] = defaultdict(set)
        chosen: dict[int, str] = {}
        for value in (*self.program.outputs.values(), *self.program.marks.values()):
            asked[value].add(self.natural(value))
        for op in reversed(self.program.ops):
            own, wish = self.natural(op.output), asked[op.output]
            only = next(iter(wish)) if len(wish) == 1 else own
            reads = KINDS[op.kind].reads
            if reads == "gather":
                asked[op.inputs[0]].add(str(op.attrs["which"]))
            elif reads == "queries" and op.attrs["q_rows"] == "tokens":
                chosen[op.output] = only
                asked[op.inputs[0]].add(only)
                for value in op.inputs[1:]:
                    asked[value].add(self.natural(value))
            elif reads in ("rows", "view") or (reads == "positions" and op.attrs["rows"] == "tokens"):
                chosen[op.output] = only
                for value in op.inputs:
                    asked[value].add(only)
            else:
                for value in op.inputs:
                    asked[value].add(self.natural(value))
        return chosen

    def get(self, value: int, selection: str) -> int:
        """Return the new value with these rows of an old value; emit a gather if needed."""
        known = self.renamed.get((value, selection))
        if known is not None:
            return known
        source = self.renamed[(value, self.computed[value])]
        self.values.append(Value(ROWS_OF[selection], self.values[source].width))
        gathered = len(self.values) - 1
        self.ops.append(Op("gather_rows", (source,), gathered, (), {"which": selection}))
        self.renamed[(value, selection)] = gathered
        return gathered

    def rename(self, op: Op, value: int) -> None:
        own = self.natural(op.output)
        self.computed[op.output] = own
        self.renamed[(op.output, own)] = value

    def emit(self, op: Op, selection: str) -> None:
        """Emit the op for a selection of its rows."""
        own = self.natural(op.output)
        if selection == own:
            inputs = tuple(self.get(value, self.natural(value)) for value in op.inputs)
            self.ops.append(replace(op, inputs=inputs))
            self.rename(op, op.output)
            return
        if KINDS[op.kind].reads == "queries":
            queries, *others = op.inputs
            inputs = (self.get(queries, selection), *(self.get(value, self.natural(value)) for value in others))
            op = replace(op, attrs={**op.attrs, "q_rows": selection})
        else:
            inputs = tuple(self.get(value, selection) for value in op.inputs)
        if KINDS[op.kind].reads == "positions":
            op = replace(op, attrs={**op.attrs, "rows": selection})
        self.values[op.output] = replace(self.values[op.output], rows=ROWS_OF[selection])
        self.ops.append(replace(op, inputs=inputs))
        self.computed[op.output] = selection
        self.renamed[(op.output, selection)] = op.output


def drop_dead(program: Program) -> Program:
    """Remove unread ops and unused weights, and renumber the values."""
    alive = {*program.outputs.values(), *program.marks.values()}
    kept: list[Op] = []
    for op in reversed(program.ops):
        if op.output in alive:
            alive.update(op.inputs)
            kept.append(op)
    kept.reverse()
    number = {op.output: position for position, op in enumerate(kept)}
    ops = tuple(replace(op, inputs=tuple(number[v] for v in op.inputs), output=number[op.output]) for op in kept)
    used = {key for op in ops for key in op.weights}
    return replace(
        program,
        values=tuple(program.values[op.output] for op in kept),
        ops=ops,
        weights={key: weight for key, weight in program.weights.items() if key in used},
        outputs={name: number[value] for name, value in program.outputs.items()},
        marks={name: number[value] for name, value in program.marks.items()},
    )


def with_outputs(program: Program, *, hidden_states: bool = False, attentions: bool = False) -> Program:
    """Add the outputs "hidden_states.<i>" and "attentions.<layer>" to a traced (not yet optimized) Program."""
    outputs, values, ops = dict(program.outputs), list(program.values), list[Op]()
    if hidden_states:
        outputs.update(program.marks)
    for op in program.ops:
        if attentions and op.kind == "attention":
            values.append(Value("tokens", 0))
            ops.append(_maps_of(op, len(values) - 1, 0, int(op.attrs["n_head"])))
            outputs[f"attentions.{op.attrs['layer']}"] = len(values) - 1
        ops.append(op)
    return replace(program, values=tuple(values), ops=tuple(ops), outputs=outputs)


def with_maps(program: Program, layers: Collection[int], heads: Collection[int]) -> Program:
    """Replace the outputs of a traced Program with "attentions.<layer>.<head>": the maps of these heads."""
    outputs, values, ops = dict[str, int](), list(program.values), list[Op]()
    for op in program.ops:
        if op.kind == "attention" and op.attrs["layer"] in layers:
            for head in heads:
                values.append(Value("tokens", 0))
                ops.append(_maps_of(op, len(values) - 1, head, 1))
                outputs[f"attentions.{op.attrs['layer']}.{head}"] = len(values) - 1
        ops.append(op)
    return replace(program, values=tuple(values), ops=tuple(ops), outputs=outputs)


def _maps_of(attention: Op, output: int, first_head: int, n_maps: int) -> Op:
    attrs = {**attention.attrs, "first_head": first_head, "n_maps": n_maps}
    return replace(attention, kind="attention_probs", inputs=attention.inputs[:2], output=output, attrs=attrs)


def linear_targets(program: Program) -> dict[str, int]:
    """Number the linears of a traced Program, by the names of their weights, as adapters do."""
    weights = dict.fromkeys(op.weights[0] for op in program.ops if op.kind == "linear")
    return {weight: target for target, weight in enumerate(weights)}


def with_lora(program: Program, targets: Collection[int]) -> Program:
    """Add a lora op after each of these linears of a traced Program. Without adapters, the results have equal bits."""
    number = linear_targets(program)
    renamed: dict[int, int] = {}
    ops, values = list[Op](), list(program.values)
    for op in program.ops:
        inputs = tuple(renamed.get(value, value) for value in op.inputs)
        ops.append(replace(op, inputs=inputs))
        if op.kind == "linear" and number[op.weights[0]] in targets:
            renamed[op.output] = len(values)
            values.append(values[op.output])
            rows = next(selection for selection, kind in ROWS_OF.items() if kind == values[-1].rows)
            attrs: dict[str, Attr] = {"target": number[op.weights[0]], "rows": rows}
            ops.append(Op("lora", (op.output, inputs[0]), len(values) - 1, (), attrs))
    names = {name: renamed.get(value, value) for name, value in program.outputs.items()}
    marks = {name: renamed.get(value, value) for name, value in program.marks.items()}
    return replace(program, values=tuple(values), ops=tuple(ops), outputs=names, marks=marks)


def with_lens(program: Program) -> Program:
    """Replace the outputs of a traced decoder with "lens.<i>": the last norm and the head, applied to hidden state i.

    Hidden state 0 is the embeddings, the last one gives the logits of the model (nostalgebraist 2020, "interpreting
    GPT: the logit lens"). Raises ConfigError if the last hidden state is not the output of a norm.
    """
    states = [program.marks[f"hidden_states.{i}"] for i in range(len(program.marks))]
    last = next(i for i, op in enumerate(program.ops) if op.output == states[-1])
    norm = program.ops[last]
    if norm.kind not in ("layer_norm", "rms_norm") or "logits" not in program.outputs:
        raise ConfigError("next_tokens: expected a language model with a norm after its last layer")
    ops, values, outputs = list(program.ops), list(program.values), dict[str, int]()
    for i, state in enumerate(states[:-1]):
        copies = {norm.inputs[0]: state}
        for op in program.ops[last:]:
            if copies.keys() & set(op.inputs):
                values.append(values[op.output])
                copies[op.output] = len(values) - 1
                ops.append(replace(op, inputs=tuple(copies.get(v, v) for v in op.inputs), output=len(values) - 1))
        outputs[f"lens.{i}"] = copies[program.outputs["logits"]]
    outputs[f"lens.{len(states) - 1}"] = program.outputs["logits"]
    return replace(program, values=tuple(values), ops=tuple(ops), outputs=outputs)


def with_pooling(program: Program, pooling: Pooling | str, *, normalize: bool = False, eps: float = 1e-12) -> Program:
    """Replace the outputs of a traced encoder with one vector per sequence, "embedding" [n_sequences, width].

    pooling: "mean", "max", "mean_sqrt_len" over the tokens of "last_hidden_state", or its "first" (CLS) or "last" row.
    """
    source = program.outputs["last_hidden_state"]
    values, width = list(program.values), program.values[source].width
    gather = pooling in ("first", "last")
    values.append(Value("sequences", width))
    op = Op("gather_rows", (source,), len(values) - 1, (), {"which": pooling})
    ops = [*program.ops, op if gather else Op("pool", (source,), len(values) - 1, (), {"pool": pooling})]
    if normalize:
        values.append(Value("sequences", width))
        ops.append(Op("l2_normalize", (len(values) - 2,), len(values) - 1, (), {"eps": eps}))
    return replace(program, values=tuple(values), ops=tuple(ops), outputs={"embedding": len(values) - 1}, marks={})
