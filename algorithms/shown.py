"""What an object shows of itself: the call that made it."""

import inspect
import os
import reprlib
from contextlib import suppress
from enum import Enum
from typing import Any

import torch


class Shown:
    """The base of what shows itself by its class and all arguments that it was made with, defaults among them.

    They are put into words when it is made, so that it need not keep them; what is no number, text or list of such is
    there by the name of its class.
    """

    _call: str | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # Of a class with a `__new__` Python 3.10 reads the signature there.
        own = inspect.signature(cls.__init__).parameters if cls.__init__ is not object.__init__ else {"self": None}
        cls.__signature__ = inspect.Signature([*own.values()][1:])  # type: ignore[attr-defined, list-item]

    def __new__(cls, *args: Any, **kwargs: Any):
        self = super().__new__(cls)
        # A copy is made without arguments, and gets these words with all else; a wrong call the constructor refuses.
        with suppress(TypeError):
            bound = inspect.signature(cls).bind(*args, **kwargs)
            bound.apply_defaults()
            given = [f"{name}={WORDS.repr(value)}" for name, value in bound.arguments.items()]
            self.__dict__["_call"] = f"{cls.__name__}({', '.join(given)})"
        return self

    def __repr__(self) -> str:
        return self._call or f"{type(self).__name__}(...)"


class _Words(reprlib.Repr):
    def repr_instance(self, x: Any, level: int) -> str:
        if x is None or isinstance(x, bool | int | float | Enum | torch.dtype | torch.device):
            return repr(x)
        if isinstance(x, os.PathLike):
            return repr(os.fspath(x))
        if hasattr(x, "to_timestring"):  # a Time of Composer's
            return repr(x.to_timestring())
        return getattr(x, "__name__", None) or f"{type(x).__name__}(...)"


WORDS = _Words()
WORDS.maxstring = WORDS.maxother = 80
