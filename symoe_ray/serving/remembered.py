"""An embedding that remembers: the profiles' skills for good, other texts as long as there is room."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

ROOM = 4096


class Remembered:
    """Embeds each distinct text once. May be called from several threads."""

    def __init__(self, embed: Callable[[Sequence[str]], np.ndarray], known: Sequence[str] = ()) -> None:
        self._embed, self._lock = embed, threading.Lock()
        self._recent: OrderedDict[str, np.ndarray] = OrderedDict()
        self._known = dict(zip(known, embed(known), strict=True)) if known else {}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """An array of shape (texts, dimensions)."""
        with self._lock:
            new = [t for t in dict.fromkeys(texts) if t not in self._known and t not in self._recent]
            if new:
                self._recent.update(zip(new, self._embed(new), strict=True))
            made = np.stack([self._known[t] if t in self._known else self._recent[t] for t in texts])
            while len(self._recent) > ROOM:
                self._recent.popitem(last=False)
            return made
