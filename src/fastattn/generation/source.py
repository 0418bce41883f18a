"""What the encoder of a model with an encoder and a decoder reads, and the memories that it writes for requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastattn.graph.executor import Cache, Executor
from fastattn.graph.ir import Step

STEP_TOKENS = 1024  # of a step of the encoder; a longer text has a step of its own
Ids = NDArray[np.int32]


class Source:
    """The ids that the encoder reads for the requests of a prompt. Only one thread at a time may use it.

    n_readers: how many requests have yet to begin. The encoder runs when the first of them begins, together with some
    of the sources after it in the call. Each request keeps what it reads in its own cache.
    """

    def __init__(self, encoder: Executor, ids: Ids, call: list[Source]) -> None:
        self.ids, self.n_readers = ids, 1
        self._encoder, self._call, self._index = encoder, call, len(call)
        self._memory: Cache | None = None

    def read_into(self, cache: Cache, most_pages: int | None) -> None:
        """Give a request's cache the memory of this source.

        most_pages: how many pages may be used for the sources after it; None: no limit.
        """
        if self._memory is None:
            self._encode(most_pages)
        assert self._memory is not None
        cache.set_memory(self._memory)
        self.n_readers -= 1
        if self.n_readers < 1:
            self.close()

    def close(self) -> None:
        """Free the memory; the requests that read it keep it."""
        memory, self._memory = self._memory, None
        if memory is not None:
            memory.close()

    def _encode(self, most_pages: int | None) -> None:
        """Run the encoder for this source and the next ones that fit in a step."""
        group, n_tokens, n_pages = [self], len(self.ids), 0
        page_len = getattr(self._encoder, "kv_page_len", 1)
        for other in self._call[self._index + 1 :]:
            n_tokens += len(other.ids)
            n_pages += -(-len(other.ids) // page_len)
            if n_tokens > STEP_TOKENS or (most_pages is not None and n_pages > most_pages):
                break
            if other._memory is None and other.n_readers > 0:
                group.append(other)
        memories, _ = encode(self._encoder, [source.ids for source in group])
        for source, memory in zip(group, memories, strict=True):
            source._memory = memory


def sources_of(encoder: Executor, ids: Sequence[Ids]) -> list[Source]:
    """Return the sources of a call."""
    call: list[Source] = []
    for one in ids:
        call.append(Source(encoder, one, call))
    return call


def encode(
    encoder: Executor, sources: Sequence[NDArray[np.int32]], *, hidden_states: bool = False
) -> tuple[list[Any], NDArray[Any]]:
    """Run the encoder over all sources, in steps of some thousand tokens; return their memories.

    hidden_states: whether to return the last hidden states too, [n_tokens, hidden_size]. The caller closes the
    memories.
    """
    name = "encoder_last_hidden_state"
    memories: list[Any] = []
    states: list[NDArray[Any]] = []
    try:
        for group in _groups(sources):
            caches = [encoder.new_cache() for _ in group]
            memories += caches
            counts = [len(ids) for ids in group]
            step = Step(
                token_ids=np.concatenate(group).astype(np.int32),
                cu_seqlens=np.cumsum([0, *counts]).astype(np.int32),
                positions=np.concatenate([np.arange(count, dtype=np.int32) for count in counts]),
                wanted=np.zeros(0, np.int32),
                caches=tuple(caches),
            )
            found = encoder.run(step, [name] if hidden_states else [next(n for n in encoder.program.outputs)])
            if hidden_states:
                states.append(np.asarray(found[name]))
    except BaseException:
        for memory in memories:
            memory.close()
        raise
    return memories, np.concatenate(states) if states else np.zeros((0, 0), np.float32)


def _groups(sources: Sequence[NDArray[np.int32]]) -> Iterator[list[NDArray[np.int32]]]:
    """Split the sources into those of one step each."""
    group: list[NDArray[np.int32]] = []
    for ids in sources:
        if group and sum(map(len, group)) + len(ids) > STEP_TOKENS:
            yield group
            group = []
        group.append(ids)
    if group:
        yield group
