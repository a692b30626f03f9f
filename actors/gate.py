"""A gate for an event loop: many in together, or one alone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Gate:
    """Lets any number in together, or one that wants to be alone once the others have left."""

    def __init__(self) -> None:
        self._inside, self._alone = 0, False
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def enter(self, *, alone: bool) -> AsyncIterator[None]:
        """Wait until one may come in, and keep others out while inside if `alone`."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._alone and not (alone and self._inside))
            self._inside, self._alone = self._inside + 1, alone
        try:
            yield
        finally:
            async with self._changed:
                self._inside, self._alone = self._inside - 1, False
                self._changed.notify_all()
