"""`with` for whatever is closed, and no copies of what belongs to its process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["Closing", "Unshared"]


class Unshared:
    """A base for classes whose instances are neither copied nor pickled."""

    __slots__ = ()

    _instead: ClassVar[str] = "make another one where it is needed"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            f"a {type(self).__name__} is neither copied nor pickled, since it belongs"
            f" to this process; {self._instead}"
        )


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
