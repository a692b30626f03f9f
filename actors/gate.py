"""A gate for an event loop: many in together, or one alone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Gate:
    """Lets any number in together, or one that wants to be alone once the others have left; it keeps newcomers out."""

    def __init__(self) -> None:
        self._inside, self._wanting, self._alone = 0, 0, False
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def enter(self, *, alone: bool) -> AsyncIterator[None]:
        """Wait until one may come in, and keep others out while inside if `alone`."""
        async with self._changed:
            self._wanting += alone
            try:
                await self._changed.wait_for(lambda: not self._alone and not (self._inside if alone else self._wanting))
            finally:
                self._wanting -= alone
                self._changed.notify_all()
            self._inside, self._alone = self._inside + 1, alone
        try:
            yield
        finally:
            async with self._changed:
                self._inside, self._alone = self._inside - 1, False
                self._changed.notify_all()
