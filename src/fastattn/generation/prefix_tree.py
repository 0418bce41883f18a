"""Pages of keys and values by the tokens that they belong to, so that sequences with equal beginnings share them.

A node is one page: the tokens of its positions, after those of its ancestors. It is found by a hash of these tokens,
which are then compared, so that no collision can mix two texts. The keys and values of a position depend only on the
tokens up to it, bit for bit, so a sequence may use the pages of another one.

A node is in use while a running sequence has it in its path, or while it is pinned. The others are evicted in the order
of their last use, leaves first.

With a sliding window in all layers, a sequence uses only the nodes that its next tokens see. An idle node before them
may lose its page while its descendants are in use. It stays in the tree without a page, as a hollow node, as long as it
has descendants.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast

from fastattn.graph.executor import Cache, PagedCache

MIN_SHARED = 16  # fewer equal tokens are computed again rather than copied with their page
_MAX_SIBLINGS = 8  # nodes that are compared for a part of a page


class Node:
    """A page of the tree. The root has no page, nor have hollow nodes."""

    __slots__ = ("children", "count", "depth", "heads", "key", "page", "parent", "pins", "users")

    def __init__(self, parent: Node | None, key: bytes, page: Any) -> None:
        self.parent, self.key, self.page = parent, key, page
        self.count = len(key) // 4  # positions
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.users = self.pins = 0
        self.children: dict[bytes, Node] = {}  # by all of their tokens
        self.heads: dict[bytes, list[Node]] = {}  # by their first MIN_SHARED tokens, the oldest first


class PrefixTree:
    """The pages of one executor. Only one thread at a time may use it.

    page_len: positions of a page. max_idle: how many pages that no sequence uses are retained. window: how many
    positions a query sees, up to its own; 0: all.
    """

    def __init__(self, page_len: int, max_idle: int, window: int = 0) -> None:
        self._roots: dict[object, Node] = {}
        self._page_len, self._max_idle, self._window = page_len, max_idle, window
        self._idle: OrderedDict[Node, None] = OrderedDict()  # the least recently used first

    def root(self, adapter: object = None) -> Node:
        """Return the root for sequences with this adapter; None: without one. Adapters change keys and values."""
        root = self._roots.get(adapter)
        if root is None:
            root = self._roots[adapter] = Node(None, b"", None)
        return root

    def forget(self, adapter: object) -> None:
        """Evict the pages of an adapter that no sequence uses."""
        pending = [self._roots.pop(adapter, Node(None, b"", None))]
        for node in pending:  # parents first
            pending += node.children.values()
        for node in reversed(pending):
            if node in self._idle and not node.children:
                self._remove(node)

    @property
    def n_idle(self) -> int:
        """The number of pages that can be evicted."""
        return len(self._idle)

    def extend(
        self, node: Node, cache: PagedCache, ids: Sequence[int], most: int, *, whole: bool = False
    ) -> tuple[Node, int]:
        """Attach the known pages of ids[cache.length:most] to a cache that ends at `node`.

        The last of them may be a part of a page. If the cache is empty, pages that no later token sees are skipped;
        whole: attach them too. Returns the new end, and how many pages were skipped. The nodes of the others are then
        in use until `leave`.
        """
        found, n_skipped = self._usable(self._known(node, ids, cache.length, most), node.depth, whole=whole)
        for i, (child, count) in enumerate(found):
            if i < n_skipped:
                cache.skip_page()
                self._touch(child)
            else:
                cache.attach(child.page, count)
                if count < self._page_len:  # no node of its own: the page is copied when the sequence writes to it
                    self._touch(child)
                    break
                self._enter(child)
            node = child
        return node, n_skipped

    def _known(self, node: Node, ids: Sequence[int], fed: int, most: int) -> list[tuple[Node, int]]:
        """Return the nodes after `node` of ids[fed:most], and how many of its tokens each of them has."""
        found = []
        while fed % self._page_len == 0 and fed < most:
            child, count = self._find(node, array("i", ids[fed : min(fed + self._page_len, most)]).tobytes())
            if child is None:
                break
            found.append((child, count))
            node, fed = child, fed + count
        return found

    def _usable(self, found: list[tuple[Node, int]], depth: int, *, whole: bool) -> tuple[list[tuple[Node, int]], int]:
        """Return as many nodes as a cache of `depth` pages can use, and how many of them it skips."""
        while found:
            length = depth * self._page_len + sum(count for _, count in found)
            n_skipped = 0
            if not depth and not whole:  # the last node of its own stays in use: the sequence goes on from it
                n_skipped = min(first_seen(length, self._window, self._page_len), max(0, length // self._page_len - 1))
            hollow = [i for i, (node, _) in enumerate(found) if i >= n_skipped and node.page is None]
            if not hollow:
                return found, n_skipped
            found = found[: hollow[0]] if n_skipped == 0 else found[: hollow[-1]]
        return [], 0

    def _find(self, node: Node, key: bytes) -> tuple[Node | None, int]:
        """Return the child with the most tokens of `key` at its beginning, and their number."""
        child = node.children.get(key)
        if child is not None:
            return child, child.count
        best, most = None, MIN_SHARED - 1
        for child in node.heads.get(key[: 4 * MIN_SHARED], ()):
            count = n_equal(child.key, key)
            if count > most and child.page is not None:
                best, most = child, count
        return best, most

    def insert(self, node: Node, cache: Cache, ids: Sequence[int], fed: int, *, tail: bool = False) -> Node:
        """Add the pages of ids[:fed], whose cache ends at `node` so far; return its new end.

        tail: also add the part of a page at the end.
        """
        paged = cast("PagedCache", cache)
        index = node.depth
        while fed - index * self._page_len >= (MIN_SHARED if tail else self._page_len):
            begin = index * self._page_len
            key = array("i", ids[begin : min(begin + self._page_len, fed)]).tobytes()
            child = node.children.get(key)
            if child is None:
                child = Node(node, key, paged.share_page(index))
                node.children[key] = child
                siblings = node.heads.setdefault(key[: 4 * MIN_SHARED], [])
                siblings.append(child)
                if len(siblings) > _MAX_SIBLINGS:
                    del siblings[0]
                self._idle[child] = None
            elif child.page is None:
                self._fill(child, paged.share_page(index))
            else:
                self._touch(child)
            if child.count < self._page_len:
                break
            self._enter(child)
            node, index = child, index + 1
        return node

    def leave(self, node: Node, begin: int = 0, end: int | None = None) -> None:
        """End the use of pages [begin, end) of the path to `node`; end: None for all of them."""
        while end is not None and node.parent is not None and node.depth > end:
            node = node.parent
        while node.parent is not None and node.depth > begin:
            node.users -= 1
            if node.users == 0 and node.pins == 0:
                self._idle[node] = None
            node = node.parent
        self._limit()

    def pin(self, nodes: Sequence[Node]) -> None:
        """Keep these nodes until `unpin`."""
        for node in nodes:
            node.pins += 1
            self._idle.pop(node, None)

    def unpin(self, nodes: Sequence[Node]) -> None:
        for node in reversed(nodes):  # the leaf becomes the oldest
            node.pins -= 1
            if node.users == 0 and node.pins == 0:
                self._idle[node] = None
        self._limit()

    def path(self, ids: Sequence[int]) -> list[Node]:
        """Return the nodes of exactly these tokens without an adapter, the first page first.

        They may end before the tokens do.
        """
        nodes, node = [], self.root()
        for begin in range(0, len(ids), self._page_len):
            child = node.children.get(array("i", ids[begin : begin + self._page_len]).tobytes())
            if child is None:
                break
            nodes.append(child)
            node = child
        return nodes

    def add(self, parent: Node, ids: Sequence[int], page: Any) -> Node:
        """Add one page that comes from elsewhere, or return the node that has its tokens already."""
        key = array("i", ids).tobytes()
        child = parent.children.get(key)
        if child is None:
            child = parent.children[key] = Node(parent, key, page)
            parent.heads.setdefault(key[: 4 * MIN_SHARED], []).append(child)
            self._idle[child] = None
        elif child.page is None:
            self._fill(child, page)
        return child

    def evict(self) -> bool:
        """Remove the page that was not used for the longest time; return whether there was one."""
        for node in self._idle:
            if not node.children:
                self._remove(node)
                return True
        hollowed = next(iter(self._idle), None)  # there is one only if a sequence left its first nodes
        if hollowed is None:
            return False
        del self._idle[hollowed]
        hollowed.page = None
        return True

    def reset_users(self) -> None:
        """Make every node that is not pinned idle. No sequence may use the tree."""
        pending = list(self._roots.values())
        n_roots = len(pending)
        for node in pending:  # parents first
            pending += node.children.values()
            node.users = 0
        idle = (node for node in reversed(pending[n_roots:]) if node.pins == 0 and node.page)
        self._idle = OrderedDict((node, None) for node in idle)

    def clear(self) -> None:
        """Evict everything that is not in use."""
        while self.evict():
            pass

    def _limit(self) -> None:
        while len(self._idle) > self._max_idle and self.evict():
            pass

    def _remove(self, node: Node) -> None:
        """Remove an idle node without descendants, and hollow ancestors that have no others."""
        del self._idle[node]
        node.page = None
        while node.parent is not None and node.page is None and not node.children:
            parent = node.parent
            del parent.children[node.key]
            head = node.key[: 4 * MIN_SHARED]
            siblings = parent.heads.get(head, [])  # without the node if it had too many siblings
            if node in siblings:
                siblings.remove(node)
            if not siblings:
                parent.heads.pop(head, None)
            node = parent

    def _fill(self, node: Node, page: Any) -> None:
        """Give a hollow node its page again."""
        node.page = page
        self._idle[node] = None

    def _enter(self, node: Node) -> None:
        node.users += 1
        self._idle.pop(node, None)

    def _touch(self, node: Node) -> None:
        if node in self._idle:
            self._idle.move_to_end(node)


def first_seen(position: int, window: int, page_len: int) -> int:
    """Return the number of the first page that a query at `position` sees. window: 0 if it sees all positions."""
    return max(0, position - window + 1) // page_len if window else 0


def n_equal(left: bytes, right: bytes) -> int:
    """Return how many int32 at the beginning of both are equal."""
    n = min(len(left), len(right)) // 4
    if left[: 4 * n] == right[: 4 * n]:
        return n
    return next(i for i in range(n) if left[4 * i : 4 * i + 4] != right[4 * i : 4 * i + 4])
