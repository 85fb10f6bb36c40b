"""The slow twins: every policy in plain Python, one access at a time, without a thought for speed."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence

from engram_tables.fetch.tiers.reference import ReferenceCache
from engram_tables.measure.caches.caches import queue_shape, set_shape

Steps = Sequence[Sequence[int]]
"""The items of each step."""
Found = list[list[bool]]
"""Whether each item of each step was there."""


def once_a_step(steps: Iterable[Sequence[int]]) -> list[list[int]]:
    """Each item of a step where it comes first."""
    return [list(dict.fromkeys(step)) for step in steps]


def numbers(steps: Steps) -> dict[int, int]:
    """Each item's number, in the order in which they first occur."""
    return {item: number for number, item in enumerate(dict.fromkeys(item for step in steps for item in step))}


def lru(steps: Steps, size: int) -> Found:
    """The cache of every tutorial."""
    cache: OrderedDict[int, None] = OrderedDict()
    found = []
    for step in once_a_step(steps):
        found.append([item in cache for item in step])
        for item in step:
            cache[item] = None
            cache.move_to_end(item)
            if len(cache) > size:
                cache.popitem(last=False)
    return found


def lru_sets(steps: Steps, size: int) -> Found:
    """The same for each set; an item's set is chosen by its scrambled number."""
    n_sets, n_ways = set_shape(size)
    sets: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(n_sets)]
    homes = {item: (_scrambled(number) >> 32) * n_sets >> 32 for item, number in numbers(steps).items()}
    found = []
    for step in once_a_step(steps):
        found.append([item in sets[homes[item]] for item in step])
        for item in step:
            ways = sets[homes[item]]
            ways[item] = None
            ways.move_to_end(item)
            if len(ways) > n_ways:
                ways.popitem(last=False)
    return found


def static(steps: Steps, size: int, hot: Sequence[int]) -> Found:
    """The first items of a list."""
    kept = set(list(dict.fromkeys(hot))[:size])
    return [[item in kept for item in step] for step in once_a_step(steps)]


def tiered(steps: Steps, n_sets: int, *, n_pinned: int = 0, hot: Sequence[int] = ()) -> Found:
    """The rule book of the reader itself, with its hot list; an item that comes twice in a step counts twice."""
    cache = ReferenceCache(n_sets=n_sets, n_rows=[2**53])
    waiting = deque(hot)
    n_in = 0
    while waiting and n_in < n_pinned:
        n_in += cache.pin(0, waiting.popleft())
    n_free, n_in = 16 * n_sets - n_in, 0
    while waiting and n_in < n_free:
        n_in += cache.preload(0, waiting.popleft())
    return [cache.fetch((0, item) for item in step) for step in steps]


class _Queues:
    """S3-FIFO as its paper writes it down."""

    def __init__(self, size: int) -> None:
        self.n_small, self.n_main = queue_shape(size)
        self.small: deque[int] = deque()
        self.main: deque[int] = deque()
        self.uses: dict[int, int] = {}
        self.names: deque[int | None] = deque()
        self.named: set[int] = set()

    def insert(self, item: int) -> None:
        """Make room, and put the item where its name says."""
        while len(self.uses) >= self.n_small + self.n_main:
            self.evict_small() if len(self.small) >= self.n_small else self.evict_main()
        if item in self.named:
            # The place that its name had stays taken until it is its turn to go.
            self.named.remove(item)
            self.names[self.names.index(item)] = None
            self.main.append(item)
        else:
            self.small.append(item)
        self.uses[item] = 0

    def note(self, item: int) -> None:
        """Put a name into the ghost queue."""
        self.names.append(item)
        self.named.add(item)
        if len(self.names) > self.n_main:
            gone = self.names.popleft()
            if gone is not None:
                self.named.remove(gone)

    def evict_small(self) -> None:
        """Throw one out, or move all to the main queue."""
        while self.small:
            item = self.small.popleft()
            if self.uses[item] <= 1:
                del self.uses[item]
                self.note(item)
                return
            self.uses[item] = 0
            self.main.append(item)
            if len(self.main) > self.n_main:
                self.evict_main()

    def evict_main(self) -> None:
        """Throw out the first that has no use left."""
        while self.main:
            item = self.main.popleft()
            if self.uses[item] == 0:
                del self.uses[item]
                return
            self.uses[item] -= 1
            self.main.append(item)


def s3_fifo(steps: Steps, size: int) -> Found:
    """See `_Queues`."""
    queues = _Queues(size)
    found = []
    for step in once_a_step(steps):
        found.append([item in queues.uses for item in step])
        for item, is_here in zip(step, found[-1], strict=True):
            if is_here:
                queues.uses[item] = min(3, queues.uses[item] + 1)
        for item, is_here in zip(step, found[-1], strict=True):
            if not is_here:
                queues.insert(item)
    return found


def belady(steps: Steps, size: int) -> Found:
    """Keep, of what is there and what has been read, the items whose next access comes first."""
    distinct = once_a_step(steps)
    order = [item for step in distinct for item in step]
    kept: dict[int, int] = {}
    found, at = [], 0
    for step in distinct:
        found.append([item in kept for item in step])
        for item in step:
            kept.pop(item, None)
        for item in step:
            following = next(_positions(order, item, at + 1), None)
            if following is not None:
                kept[item] = following
            at += 1
        kept = dict(sorted(kept.items(), key=lambda each: each[1])[:size])
    return found


def _positions(order: Sequence[int], item: int, start: int) -> Iterator[int]:
    return (k for k in range(start, len(order)) if order[k] == item)


def _scrambled(number: int) -> int:
    """The finaliser of MurmurHash3."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        number = (number ^ number >> 33) * factor % 2**64
    return number ^ number >> 33
