"""A language model without weights: the logits of a row are a fixed random function of its sequence so far."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastattn.errors import InputError
from fastattn.generation.engine import Engine
from fastattn.graph.ir import Program, Step, Value
from fastattn.tokenizer import Tokenizer


class ToyCache:
    """Stores the ids themselves."""

    def __init__(self, owner: ToyExecutor) -> None:
        self.ids: list[int] = []
        self.owner = owner
        owner.open_caches += 1
        self.closed = False

    @property
    def length(self) -> int:
        return len(self.ids)

    def truncate(self, length: int) -> None:
        del self.ids[length:]

    def fork(self) -> ToyCache:
        other = ToyCache(self.owner)
        other.ids = list(self.ids)
        return other

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.owner.open_caches -= 1


class ToyExecutor:
    """`logits_of` maps a sequence to its logits; `sizes` records the number of tokens of each step."""

    def __init__(self, vocab_size: int, max_positions: int = 64) -> None:
        self.program = Program(
            values=(Value("wanted", vocab_size),),
            ops=(),
            weights={},
            outputs={"logits": 0},
            n_layer=1,
            n_kv_head=1,
            head_dim=1,
            max_positions=max_positions,
            causal=True,
        )
        self.open_caches = 0
        self.sizes: list[int] = []
        self.logits_of: Callable[[list[int]], NDArray[np.float64]] = self.random_logits

    def random_logits(self, ids: list[int]) -> NDArray[np.float64]:
        seed = zlib.crc32(np.array(ids, np.int32).tobytes())
        return np.random.default_rng(seed).normal(size=self.program.values[0].width) * 3

    def new_cache(self, adapter: object = None) -> ToyCache:
        return ToyCache(self)

    def run(self, step: Step, outputs: Sequence[str] | None = None) -> dict[str, Any]:
        assert outputs == ["logits"]
        assert step.caches is not None
        self.sizes.append(len(step.token_ids))
        rows = []
        for i, cache in enumerate(step.caches):
            assert isinstance(cache, ToyCache)
            if cache.closed:
                raise InputError("cache: closed")
            begin, end = int(step.cu_seqlens[i]), int(step.cu_seqlens[i + 1])
            assert step.positions[begin:end].tolist() == list(range(cache.length, cache.length + end - begin))
            for row in range(begin, end):
                cache.ids.append(int(step.token_ids[row]))
                if row in step.wanted:
                    rows.append(self.logits_of(list(cache.ids)))
        width = self.program.values[0].width
        return {"logits": np.array(rows).reshape(-1, width)}

    def with_program(self, program: Program) -> ToyExecutor:
        raise NotImplementedError

    def close(self) -> None:
        pass


class ToyModel:
    """The interface that `generate` and `stream` need."""

    def __init__(self, tokenizer: Tokenizer | None = None, vocab_size: int = 32, max_positions: int = 64) -> None:
        self.executor = ToyExecutor(len(tokenizer) if tokenizer else vocab_size, max_positions)
        self.engine = Engine(self.executor)
        self.tokenizer = tokenizer
        self.bos_token_id: int | None = None
        self.eos_token_ids: tuple[int, ...] = ()
        self.pad_token_id: int | None = None
        self.generation_config: dict[str, Any] = {}

    def explain_id(self, token_id: int) -> str:
        return ""

    def always_say(self, ids: Sequence[int], prompt_len: int) -> None:
        """Repeat `ids` as the text after all prompts of `prompt_len`."""

        def logits(sequence: list[int]) -> NDArray[np.float64]:
            row = np.zeros(self.executor.program.values[0].width)
            row[ids[(len(sequence) - prompt_len) % len(ids)]] = 9.0
            return row

        self.executor.logits_of = logits
