"""Results of finished jobs, kept for those who ask for the same again."""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

MAX_BYTES = 96 * 2**20


class Cache:
    """Values by key, the least recently used dropped where they take more than ``max_bytes`` together."""

    def __init__(self, max_bytes: int = MAX_BYTES):
        self.max_bytes = max_bytes
        self.used = 0
        self._values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def largest(self) -> int:
        """Bytes of the largest value that is kept: one must not drive out all others."""
        return self.max_bytes // 4

    def get(self, key: Hashable):
        """The value, or None."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: Hashable, value, size: int):
        """Keep ``value``, of ``size`` bytes, unless it is larger than ``largest``."""
        if size > self.largest:
            return
        with self._lock:
            self._drop(key)
            self._values[key] = (value, size)
            self.used += size
            while self.used > self.max_bytes:
                self._drop(next(iter(self._values)))

    def _drop(self, key: Hashable):
        _, size = self._values.pop(key, (None, 0))
        self.used -= size
