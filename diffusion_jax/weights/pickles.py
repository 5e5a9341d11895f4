"""The part of Python's pickle format that weights are written in, read as data.

A pickle is a program for a stack machine. `pickle.Unpickler` can be kept from calling foreign functions, but not from
hashing a tuple that holds itself a billion times over, or from reserving memory for a memo entry of number 2^32. The
machine here has only the instructions that dictionaries, lists, tuples, numbers, strings, tensors and plain objects
need; its dictionaries have names and integers as keys, and what it returns is no larger than the file could have
written out. What a file makes by a function or class that is not known is an `Unknown`: it is neither imported nor
called.
"""

from __future__ import annotations

import dataclasses
import io
import pickletools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

# The largest state dicts in use need a tenth of these, as the elements of tensors lie outside of the pickle.
MAX_BYTES = 2**24
_MAX_INSTRUCTIONS = 2**20
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": lambda: Unknown("builtins.set"),
}
_LITERALS = (
    *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "BINSTRING", "SHORT_BINSTRING", "STRING"),
    *("BINBYTES", "SHORT_BINBYTES"),
)
_NEW = {"NEWOBJ": 2, "NEWOBJ_EX": 3}  # entries of the stack: the class, its arguments, with names
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_SHARED = 16  # how often what a file shares may be repeated on average: shapes and strides, never whole models


class Refused(ValueError):
    """The file can be read but holds something that is refused."""


@dataclasses.dataclass(frozen=True)
class Unknown:
    """Stands for a function, a class, or what the file makes with it, by its name; nothing of it is known or run."""

    name: str


def read_pickle(file: io.BufferedIOBase, known: Callable[[str, str], Any], persistent: Callable[[Any], Any]) -> Any:
    """The object in the pickle at the current position of `file`, which is left at its end.

    Args:
      known: (module, name) -> its replacement: a callable, which the pickle may then call, a value, or an `Unknown`,
        of which calls, items and attributes are dropped.
      persistent: from the reference to an object outside of the pickle to that object.

    Raises:
      Refused: an instruction, a key or a size that no state dict needs.
      Exception: of many types, for a pickle that is damaged.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    instructions = 0
    start = file.tell()
    content = io.BytesIO(file.read(MAX_BYTES))

    def above_mark() -> list[Any]:
        at = marks.pop()
        items = stack[at:]
        del stack[at:]
        return items

    for opcode, argument, _ in pickletools.genops(content):
        instructions += 1
        if instructions > _MAX_INSTRUCTIONS:
            raise Refused(f"its description of tensors has more than {_MAX_INSTRUCTIONS} instructions")
        name = opcode.name
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in _LITERALS:
            stack.append(argument)
        elif name in ("DICT", "LIST"):
            items = above_mark()
            stack.append(items if name == "LIST" else dict(_pairs(zip(items[::2], items[1::2], strict=True))))
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[argument])
        elif name == "TUPLE":
            stack.append(tuple(above_mark()))
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
        elif name in ("APPEND", "APPENDS"):
            items = above_mark() if name == "APPENDS" else [stack.pop()]
            if not isinstance(stack[-1], Unknown):
                _of(list, stack[-1]).extend(items)
        elif name == "FROZENSET":
            above_mark()
            stack.append(Unknown("builtins.frozenset"))
        elif name == "ADDITEMS":
            above_mark()
            _of(Unknown, stack[-1])
        elif name in ("SETITEM", "SETITEMS"):
            items = above_mark() if name == "SETITEMS" else [stack.pop() for _ in range(2)][::-1]
            if not isinstance(stack[-1], Unknown):
                _of(dict, stack[-1]).update(_pairs(zip(items[::2], items[1::2], strict=True)))
        elif name == "GLOBAL":
            stack.append(known(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = (_of(str, stack.pop()) for _ in range(2))
            stack.append(known(module, attribute))
        elif name == "REDUCE":
            arguments, function = _of(tuple, stack.pop()), stack.pop()
            if isinstance(function, Unknown):
                stack.append(function)
                continue
            if not callable(function):
                raise Refused(f"it calls a {type(function).__name__}")
            stack.append(function(*arguments))
        elif name in _NEW:
            made = stack[-_NEW[name]]
            if not isinstance(made, Unknown):
                raise Refused(f"it makes an object of a {type(made).__name__}")
            stack[-_NEW[name] :] = [made]
        elif name == "BUILD":  # attributes, which PyTorch gives to the dictionaries of its state dicts
            stack.pop()
            if not isinstance(stack[-1], Unknown):
                _of(dict, stack[-1])
        elif name == "BINPERSID":
            stack.append(persistent(stack.pop()))
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise Refused(f"it has the instruction {name}, which no dictionary of tensors needs")
    file.seek(start + content.tell())
    (result,) = stack
    _check_size(result, _SHARED * instructions)
    return result


def ordered_dict(*arguments: Any) -> dict[str | int, Any]:
    """collections.OrderedDict, from nothing or a list of pairs (as Python 2 wrote it), which is used up.

    A few instructions could otherwise make any number of dictionaries of one long list.
    """
    if not arguments:
        return {}
    (items,) = arguments
    result = dict(_pairs(_of(list, items)))
    items.clear()
    return result


def default_dict(*arguments: Any) -> dict[str | int, Any]:
    """collections.defaultdict, whose factory is not called."""
    return ordered_dict(*arguments[1:])


def _pairs(items: Any) -> Iterator[tuple[str | int, Any]]:
    for key, value in items:
        plain = key if type(key) is tuple else (key,)
        if type(key) not in (str, int) and all(isinstance(x, Unknown | str | int | float | None) for x in plain):
            continue  # of an optimizer, say; a state dict has names
        if type(key) not in (str, int):
            raise Refused(f"a dictionary in it has a {type(key).__name__} as a key")
        yield key, value


def _of(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise Refused(f"it has a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _check_size(value: Any, limit: int) -> None:
    """Refuse what holds itself, or parts of itself so often that reading it through would not end."""
    waiting, seen = [value], 0
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            waiting.extend(value.values())
        elif isinstance(value, (list, tuple)):
            waiting.extend(value)
        seen += 1
        if seen + len(waiting) > limit:
            raise Refused("it holds the same parts again and again, or itself")
