"""`with` for whatever is closed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["Closing"]


class Closing:
    """A base for classes with a `close()`: the end of a `with` block calls it."""

    __slots__ = ()

    if TYPE_CHECKING:

        def close(self) -> object:
            """Let go of everything; idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
