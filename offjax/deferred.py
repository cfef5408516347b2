"""A text that is made when it is first read."""

from collections.abc import Callable


class Deferred:
    """``Deferred(make)()`` is ``make()``, called once; ``Deferred(text)()`` is the text. Compared and pickled as text.

    >>> text = Deferred(lambda: "made")
    >>> text()
    'made'
    """

    def __init__(self, text: str | Callable[[], str]) -> None:
        self._text = text

    def __call__(self) -> str:
        if not isinstance(self._text, str):
            self._text = self._text()
        return self._text

    def __str__(self) -> str:
        return self()

    def __repr__(self) -> str:
        return f"Deferred({self._text!r})" if isinstance(self._text, str) else "Deferred(...)"

    def __eq__(self, other: object) -> bool:
        return self() == other() if isinstance(other, Deferred) else NotImplemented

    def __hash__(self) -> int:
        return hash(self())

    def __reduce__(self):
        return Deferred, (self(),)
