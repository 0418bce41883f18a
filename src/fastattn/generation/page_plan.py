"""Decides which sequences have pages for their next tokens, and which pages they share."""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

from fastattn.errors import InputError, OutOfMemory
from fastattn.generation.prefix_tree import MIN_SHARED, PrefixTree, first_seen, n_equal
from fastattn.generation.request import Request
from fastattn.graph.executor import Executor, PagedCache, PagedExecutor

IDLE_BYTES = 256 << 20  # of pages that no sequence uses, if there is no limit for all pages
_MANY_STEPS = 1 << 30


class KvStats(NamedTuple):
    """Pages of keys and values. A page has `page_len` positions.

    limit: how many pages the model may use; None: no limit. in_use: of running sequences, pinned prefixes and caches of
    the caller. idle: of texts that ended; they are evicted when a sequence needs their memory. draft_bytes: keys and
    values of draft models (`assistant_model`) at this moment, which the limit does not include.
    """

    page_len: int
    page_bytes: int
    limit: int | None
    in_use: int
    idle: int
    draft_bytes: int = 0


class PagePlan:
    """The pages of one executor. Executors without pages have no limit and share nothing.

    limit_bytes: for all pages; None: no limit. share: whether sequences share pages. idle_bytes: of pages that no
    sequence uses. step_tokens: the most tokens of a sequence that a step feeds.

    If all layers have sliding windows, a sequence frees the pages that its later tokens do not see.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        limit_bytes: int | None = None,
        share: bool = False,
        idle_bytes: int = 0,
        step_tokens: int = _MANY_STEPS,
    ) -> None:
        self._executor = executor
        self._paged = executor if isinstance(executor, PagedExecutor) else None
        self._planned = self._ignored = 0
        self.tree: PrefixTree | None = None
        self.limit: int | None = None
        self._page_len, self._step_tokens = _MANY_STEPS, step_tokens
        self._window = 0 if self._paged is None else executor.program.kv_window
        if self._paged is not None:
            self._page_len = self._paged.kv_page_len
            page_bytes = self._paged.kv_page_bytes
            if limit_bytes is not None and page_bytes:
                self.limit = max(1, limit_bytes // page_bytes)
            if share and page_bytes:
                self.tree = PrefixTree(self._page_len, idle_bytes // page_bytes, self._window)

    def use(self, executor: Executor) -> None:
        """Use another executor of the same model from now on."""
        self._executor = executor
        self._paged = executor if isinstance(executor, PagedExecutor) else None

    def stats(self) -> KvStats:
        """Return the current numbers; zeros for an executor without pages."""
        if self._paged is None:
            return KvStats(0, 0, None, 0, 0)
        idle = 0 if self.tree is None else self.tree.n_idle
        return KvStats(self._page_len, self._paged.kv_page_bytes, self.limit, self._in_use() - idle, idle)

    def ignore_used(self) -> None:
        """Do not count the pages that are in use now: those of the parent process, in the child of a fork."""
        self._ignored = 0 if self._paged is None else self._paged.kv_pages_in_use

    def pages(self, length: int) -> int:
        """Return the number of pages of a sequence."""
        return -(-length // self._page_len)

    def _most(self, request: Request, length: int) -> int:
        """Return the most pages that a request has at a time until it has `length` tokens in its cache."""
        if not self._window or request.pins:
            return self.pages(length)
        return min(self.pages(length), self.pages(self._window) + self.pages(self._step_tokens) + 1)

    def check(self, request: Request) -> None:
        """Raise OutOfMemory if all pages together are too few for a request."""
        length = request.prompt_len + request.max_new_tokens
        most = self._most(request, length if request.context is None else min(length, request.context))
        most += self.of_source(request)
        beams = ""
        if request.search is not None:
            most = self._of_beams(request, [length] * request.n_sequences) + self.of_source(request)
            beams = f" with {request.n_sequences} beams"
        if self.limit is not None and most > self.limit and self._paged is not None:
            raise OutOfMemory(
                f"kv_cache_bytes: expected at least {most * self._paged.kv_page_bytes} bytes for a text of "
                f"{request.prompt_len} + {request.max_new_tokens} tokens{beams}, got {self.limit} pages of "
                f"{self._paged.kv_page_bytes} bytes; load the model with more, or pass a smaller max_new_tokens"
            )

    # -- one plan -----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start to plan a step."""
        self._planned = 0

    def reserve(self, request: Request, count: int, *, after: int = 0) -> bool:
        """Reserve the pages that `count` more tokens need; return whether there are enough.

        after: tokens before them whose pages are reserved already.
        """
        if self.limit is None:
            return True
        needed = self._growth(request, after + count) - (self._growth(request, after) if after else 0)
        while needed and self._free() < needed:
            if self.tree is None or not self.tree.evict():
                return False
        self._planned += needed
        return True

    def force(self, request: Request, count: int) -> None:
        """Reserve the pages even though there are not enough: caches of other users have them."""
        self._planned += self._growth(request, count)

    def fits(self, n_pages: int) -> bool:
        """Return whether there are this many pages, free or idle."""
        return self.limit is None or self._free() + (0 if self.tree is None else self.tree.n_idle) >= n_pages

    def needed(self, request: Request) -> int:
        """Return the pages of the request's tokens so far and the next one, and of what its encoder reads."""
        if request.search is not None:
            return self._of_beams(request, [length + 1 for length in request.search.lengths]) + self.of_source(request)
        return self._most(request, len(request.ids) - request.base + 1) + self.of_source(request)

    def of_source(self, request: Request) -> int:
        """Return the pages of what its encoder reads."""
        return 0 if request.source is None else self.pages(len(request.source.ids))

    def steps_for(self, rows: Sequence[Request]) -> int:
        """Return how many steps of one token each have pages, including one that was reserved."""
        if self.limit is None:
            return _MANY_STEPS
        if self._free() >= len(rows):
            return self._page_len
        return min(1 + -(row.fed + 1) % self._page_len for row in rows)

    def _growth(self, request: Request, count: int) -> int:
        """Return the pages that `count` more tokens need. The first token after a copy also copies a part of a page."""
        if request.search is None or not request.search.beams:
            return self.pages(request.fed + count) - self.pages(request.fed)
        return sum(
            self.pages(beam.fed + part)
            - self.pages(beam.fed)
            + (beam.fed == beam.forked and beam.fed % self._page_len > 0)
            for beam, part in request.search.parts(count)
        )

    def _of_beams(self, request: Request, lengths: Sequence[int]) -> int:
        """Return the pages of a beam search with beams of these lengths, which share the whole pages of the prompt."""
        shared = request.prompt_len // self._page_len
        return self.pages(request.prompt_len) + sum(self.pages(length) - shared for length in lengths)

    def _free(self) -> int:
        return (self.limit or 0) - self._in_use() - self._planned

    def _in_use(self) -> int:
        return 0 if self._paged is None else self._paged.kv_pages_in_use - self._ignored

    # -- the pages of a request ---------------------------------------------------------------------------------------

    def start(self, request: Request) -> None:
        """Give a request an empty cache."""
        request.cache, request.fed, request.n_unseen = self._executor.new_cache(request.adapter), 0, 0
        if request.source is not None:
            most = None if self.limit is None else max(0, self._free()) // 2
            request.source.read_into(request.cache, most)
            request.node = None
        else:
            request.node = None if self.tree is None else self.tree.root(request.adapter)

    def extend(self, request: Request) -> None:
        """Attach known pages of the next tokens; the last token is always computed."""
        if self.tree is None or request.node is None or request.fed != request.node.depth * self._page_len:
            return
        cache = cast("PagedCache", request.cache)
        ids = request.window
        request.node, n_skipped = self.tree.extend(request.node, cache, ids, len(ids) - 1, whole=request.pins)
        request.n_unseen += n_skipped
        if n_skipped:
            cache.slide(self._window)  # frees nothing; `truncate` then knows which pages it needs
        request.fed = cache.length

    def waits(self, request: Request, firsts: dict[tuple[int, bytes], Request]) -> bool:
        """Return whether a request of this step computes what the request can share in the next one.

        firsts: the first request of this step for each node and the tokens that follow it.
        """
        if self.tree is None or request.node is None:
            return False
        begin = request.node.depth * self._page_len
        page = array("i", request.window[begin : begin + self._page_len]).tobytes()
        if len(page) <= 4 * MIN_SHARED:
            return False
        key = (id(request.node), page[: 4 * MIN_SHARED])
        first = firsts.setdefault(key, request)
        if first is request or request.fed > begin:
            return False
        other = array("i", first.window[begin : begin + self._page_len]).tobytes()
        if n_equal(page, other) < MIN_SHARED:
            return False
        first.awaited = True
        return True

    def whole(self, request: Request, count: int) -> int:
        """Return `count`, or less so that the tokens end with a page."""
        if count == request.left:
            return count
        end = request.fed + count
        at_page = end - end % self._page_len
        return at_page - request.fed if at_page > request.fed else count

    def share(self, request: Request) -> None:
        """Add the pages that a step completed to the tree, and free those that later tokens do not see."""
        self._share(request)
        if self._window and not request.pins:
            self._slide(request)

    def _slide(self, request: Request) -> None:
        for cache in (request.cache, *(beam.cache for beam in request.beams)):
            if cache is not None:
                cast("PagedCache", cache).slide(self._window)
        if self.tree is None or request.node is None:
            return
        # The end stays in use: the sequence goes on from it.
        first = min(first_seen(request.fed, self._window, self._page_len), request.node.depth - 1)
        if first > request.n_unseen:
            self.tree.leave(request.node, request.n_unseen, first)
            request.n_unseen = first

    def _share(self, request: Request) -> None:
        if self.tree is None or request.node is None or request.cache is None:
            return
        if request.fed - request.node.depth * self._page_len >= self._page_len:
            request.node = self.tree.insert(request.node, request.cache, request.window, request.fed)
        if request.awaited and request.fed >= len(request.ids) - request.base:
            request.awaited = False
            request.node = self.tree.insert(request.node, request.cache, request.window, request.fed, tail=True)

    def release(self, request: Request) -> None:
        """Free the cache of a request; its pages remain in the tree for a while."""
        if self.tree is not None and request.node is not None and request.cache is not None:
            ids = request.window
            node = self.tree.insert(request.node, request.cache, ids, min(request.fed, len(ids)), tail=True)
            if request.pins and request.finish_reason is not None and not request.pinned:
                request.pinned = self.tree.path(request.ids[: request.prompt_len])
                self.tree.pin(request.pinned)
            request.close()
            request.node = None
            self.tree.leave(node, request.n_unseen)
        self.drop(request)

    def drop(self, request: Request) -> None:
        """Free the cache of a request and add nothing to the tree."""
        node, request.node = request.node, None
        request.close()
        if self.tree is not None and node is not None:
            self.tree.leave(node, request.n_unseen)
        request.fed, request.n_unseen, request.awaited = 0, 0, False

    def recover(self) -> None:
        """Repair the tree after an interruption. No request may have a cache."""
        if self.tree is not None:
            self.tree.reset_users()


def check_limit(executor: Executor, kv_cache_bytes: int | None) -> None:
    """Check that there is memory for a page. Raises InputError."""
    if kv_cache_bytes is None or not isinstance(executor, PagedExecutor):
        return
    if kv_cache_bytes < executor.kv_page_bytes:
        raise InputError(
            f"kv_cache_bytes: expected at least {executor.kv_page_bytes}, the bytes of one page of "
            f"{executor.kv_page_len} tokens, got {kv_cache_bytes}"
        )


def default_limit_bytes() -> int:
    """Return a quarter of the memory that this process may use, at least IDLE_BYTES."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        limit = "max"
    return max(IDLE_BYTES, min(total, int(limit) if limit.isdigit() else total) // 4)
