"""Streams for event loops."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any


async def pieces(method: Callable[..., Any], *arguments: Any, **options: Any) -> AsyncIterator[str]:
    """The pieces of the stream that a method gives; whatever computes runs in a thread of the loop's executor."""
    run = asyncio.get_running_loop().run_in_executor
    stream = await run(None, lambda: method(*arguments, **options))
    try:
        while (piece := await run(None, next, stream, None)) is not None:
            yield piece
    finally:
        # The thread of a task that was cancelled is still at it.
        stream.close()
