"""Conditions of a model by name: their shapes and null values, dropout for classifier-free guidance, and requests."""

from __future__ import annotations

import difflib
import pathlib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Key

from diffusion_jax.types import Cond, Spec

Describe = Callable[[np.ndarray], list[str]]  # ids -> texts
_SHOWN = 20  # names of classes in a message
NO_RATES: Mapping[str, float] = types.MappingProxyType({})
# Random bits of dropout, and the first column of a file of samples, depend on the order: these come first, in the order
# of the table in `Conditions`, and all others follow by name.
_FIRST = ("label", "vector", "sizes", "tokens", "mask", "image", "control")


class Request(NamedTuple):
    """What a file of requests is read with: its folder, the model's tokenizer, and a reader of images.

    `image(values, shape)` takes paths of files in the folder, or an array, to [n, *shape] in [-1, 1]. `classes()` gives
    the names of the classes in the order of their numbers.
    """

    folder: pathlib.Path
    tokenize: Callable[[Sequence[str]], np.ndarray]
    image: Callable[[Any, tuple[int, ...]], np.ndarray]
    classes: Callable[[], Sequence[str]] = tuple


def numbers(request: Request, values: Any, spec: Spec) -> np.ndarray:
    """The entries of n samples from n numbers, or nested lists of numbers; the default of `Condition.read`.

    Raises ValueError for arrays of a dtype that does not fit, or what are no numbers of that shape.
    """
    if isinstance(values, np.ndarray):
        if not np.can_cast(values.dtype, spec.dtype, "same_kind"):
            raise ValueError(f"its dtype is {values.dtype}, not {spec.dtype}")
        return values.astype(spec.dtype)
    try:
        return np.array(values, spec.dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"it must be numbers of shape {spec.shape}: {error}") from error


class Condition(NamedTuple):
    """One condition: what an entry of it is, its null value, and how people ask for it and read it.

    Attributes:
        spec: of one entry, without the batch axis; integers are in 0..values - 1.
        null: the null value of classifier-free guidance, a number or nested tuples that broadcast to the entry.
        read: (request, values, spec) -> [n, *shape], from the values of n samples in a file or on the command line.
        words: (entries, describe) -> n texts, which stand below pictures; `describe` is the model's, from ids to texts.
            None: this condition is not written.
        structure: whether it says what the example consists of (which atoms or pixels exist, a pocket, a level of
            noise, a task). It is never dropped, and the null branch of guidance sees it too.
        along: the name of the condition that it belongs to, with which it is dropped: a mask, with its tokens.
        key: its name in a file of requests and "" for its own; what has another is recorded as its words.
        separator: between the entries on the command line; "" where it cannot be written there.
        optional: whether samples can be drawn without it, as config.sampling.cond=prior asks for.
        operator: the `guidance.operators.Operator` that an entry is a measurement by, of which held-out examples give
            one; None for any other condition.
        start: whether sampling starts from an entry: "paired" where it belongs to an example, such as its degraded
            image, "unpaired" where it is an example of another data set, "" for any other condition.
    """

    spec: Spec
    null: Any = 0
    read: Callable[[Request, Any, Spec], np.ndarray] = numbers
    words: Callable[[np.ndarray, Describe], list[str]] | None = None
    structure: bool = False
    along: str = ""
    key: str = ""
    separator: str = ""
    optional: bool = False
    operator: Any = None
    start: str = ""

    def rows(self, num: int) -> Array:
        """`num` null values."""
        null = np.array(self.null) if isinstance(self.null, tuple) else self.null
        return jnp.full((num, *self.spec.shape), null, self.spec.dtype)


def label(num_classes: int) -> Condition:
    """A class in 0..num_classes - 1; the null class is `num_classes`."""
    return Condition(Spec((), "int32", values=num_classes), num_classes, _classes, _class_words, separator=",")


def vector(dim: int, dtype: str = "float32") -> Condition:
    """`dim` numbers; the null value is zero."""
    return Condition(Spec((dim,), dtype))


def token_ids(max_tokens: int, vocabulary: int) -> Condition:
    """A text as ids in 1..vocabulary - 1 that the network encodes; 0 is padding, and the null text is all padding."""
    spec = Spec((max_tokens,), "int32", values=vocabulary)
    return Condition(spec, read=_texts, words=_text_words, key="caption", separator="|")


def token_vectors(max_tokens: int, dim: int) -> Condition:
    """A text, or boxes, that another network has encoded: one vector per token; the null value is zero."""
    return Condition(Spec((max_tokens, dim)))


def token_mask(max_tokens: int) -> Condition:
    """Which entries of the condition "tokens" exist; in the null value none does."""
    return Condition(Spec((max_tokens,), "bool"), along="tokens")


def image(shape: tuple[int, ...]) -> Condition:
    """An image in [-1, 1]: a semantic map, a smaller image, a photo to edit; the null value is zero."""
    return Condition(Spec(tuple(shape)), read=_image)


def structure(shape: tuple[int, ...], dtype: str = "float32", *, null: Any = 0, values: int = 0) -> Condition:
    """A condition that says what an example consists of; dropout and guidance never remove it."""
    return Condition(Spec(tuple(shape), dtype, values=values), null, structure=True)


class Conditions(Mapping[str, Condition]):
    """Which conditions a network reads, or a guidance steers towards, by name. Any of them go together.

    The set is open: `Conditions({"pocket": structure((64, 3))})` needs no other file to know it. Keywords ask for the
    usual ones:

    | name | keywords | in a batch | null |
    |---|---|---|---|
    | `label` | num_classes | int [batch], a class in 0..num_classes - 1 | num_classes |
    | `vector` | vector_dim | float [batch, vector_dim] | zeros |
    | `sizes` | num_sizes | int [batch, num_sizes], such as the size and crop of an image | zeros |
    | `tokens` | max_tokens, token_dim, vocabulary | int [batch, max_tokens], ids that the network encodes to vectors \
of width token_dim; 0 is padding | padding |
    | `tokens`, `mask` | max_tokens, token_dim | float [batch, max_tokens, token_dim], bool [batch, max_tokens]: a \
text or boxes that another network has encoded | empty mask |
    | `tokens` | the same and unmasked | float [batch, max_tokens, token_dim], all of which count | zeros |
    | `image` | image_shape | float [batch, *image_shape], concatenated to x | zeros |
    | `control` | control_shape | float [batch, *control_shape], an image that a ControlNet reads | zeros |

    Raises:
        ValueError: a negative number, or tokens without a length.
    """

    def __init__(
        self,
        entries: Mapping[str, Condition] = types.MappingProxyType({}),
        /,
        *,
        num_classes: int = 0,
        vector_dim: int = 0,
        num_sizes: int = 0,
        token_dim: int = 0,
        vocabulary: int = 0,
        max_tokens: int = 0,
        unmasked: bool = False,
        image_shape: tuple[int, ...] = (),
        control_shape: tuple[int, ...] = (),
    ):
        sizes = dict(
            num_classes=num_classes,
            vector_dim=vector_dim,
            num_sizes=num_sizes,
            token_dim=token_dim,
            vocabulary=vocabulary,
            max_tokens=max_tokens,
        )
        for field, value in sizes.items():
            if value < 0:
                raise ValueError(f"{field}={value} must be at least 0; 0 for no such condition")
        if bool(token_dim) != bool(max_tokens) or (vocabulary and not token_dim):
            raise ValueError(
                f"{token_dim=}, {max_tokens=} and {vocabulary=}: tokens need both a width and a length, and ids a "
                "vocabulary"
            )
        usual = {
            "label": label(num_classes) if num_classes else None,
            "vector": vector(vector_dim) if vector_dim else None,
            "sizes": vector(num_sizes, "int32") if num_sizes else None,
            "tokens": token_vectors(max_tokens, token_dim) if token_dim else None,
            "mask": token_mask(max_tokens) if token_dim and not (vocabulary or unmasked) else None,
            "image": image(image_shape) if image_shape else None,
            "control": image(control_shape) if control_shape else None,
        }
        if vocabulary:
            usual["tokens"] = token_ids(max_tokens, vocabulary)
        merged = {name: condition for name, condition in usual.items() if condition} | dict(entries)
        first = [name for name in _FIRST if name in merged]
        self._entries = {name: merged[name] for name in (*first, *sorted(merged.keys() - set(_FIRST)))}

    def __getitem__(self, name: str) -> Condition:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __hash__(self) -> int:
        return hash(tuple((name, condition.spec) for name, condition in self.items()))

    def __repr__(self) -> str:
        return f"Conditions({', '.join(f'{name}={condition.spec}' for name, condition in self.items())})"

    def __or__(self, other: Mapping[str, Condition]) -> Conditions:
        """The conditions of both; where both have one, that of `self`, with what belongs to it."""
        new = {name: condition for name, condition in other.items() if (condition.along or name) not in self}
        return Conditions(new | self._entries)

    def prefixed(self, prefix: str) -> Conditions:
        """The same conditions under other names, `prefix` and their own, and required."""
        return Conditions(
            {
                prefix + name: condition._replace(
                    along=condition.along and prefix + condition.along,
                    key=condition.key and prefix + condition.key,
                    separator="",
                    optional=False,
                )
                for name, condition in self.items()
            }
        )

    @property
    def specs(self) -> dict[str, Spec]:
        """One entry of each condition, by name."""
        return {name: condition.spec for name, condition in self.items()}

    @property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of one entry of each condition, by name."""
        return {name: jax.ShapeDtypeStruct(spec.shape, np.dtype(spec.dtype)) for name, spec in self.specs.items()}

    @property
    def num_classes(self) -> int:
        """Number of classes of the condition "label"; 0 without one."""
        return self["label"].spec.values if "label" in self else 0

    @property
    def vocabulary(self) -> int:
        """Number of ids of the condition "tokens"; 0 if these are vectors, or do not exist."""
        return self["tokens"].spec.values if "tokens" in self else 0

    @property
    def max_tokens(self) -> int:
        """Length of the condition "tokens"; 0 without one."""
        return self["tokens"].spec.shape[0] if "tokens" in self else 0

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of the condition "image"; () without one."""
        return self["image"].spec.shape if "image" in self else ()

    def of(self, batch: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """The conditions among the entries of a batch; None for a batch of None. ValueError: one is missing."""
        if batch is None or not self:
            return None
        missing = [name for name in self if name not in batch]
        if missing:
            raise ValueError(f"the condition {missing[0]!r} is missing; there are {', '.join(batch) or 'none'}")
        return {name: batch[name] for name in self}

    def null(self, batch: int = 1) -> Cond:
        """`batch` rows of the null condition; None without any conditions."""
        return {name: condition.rows(batch) for name, condition in self.items()} or None

    def nulled(self, cond: Cond) -> Cond:
        """The null condition that classifier-free guidance of `cond` leads away from: it has the structures of `cond`.

        It has one row, or the rows of `cond` if there are structures.
        """
        kept = {name: cond[name] for name in self if self[name].structure} if cond else {}
        if not kept:
            return self.null()
        return {name: kept.get(name, null) for name, null in self.null(len(next(iter(kept.values())))).items()}

    def dropped_rows(self, key: Key[Array, ""], rate: float, num: int) -> Bool[Array, "{num}"]:
        """The rows whose conditions `dropped` replaces jointly, for the same key and rate."""
        return jax.random.bernoulli(key, rate, (num,))

    def dropped(self, key: Key[Array, ""], cond: Cond, rate: float, rates: Mapping[str, float] = NO_RATES) -> Cond:
        """`cond` with all conditions of a row replaced by the null condition, in each row with probability `rate`.

        A network so trained is conditional and unconditional in one (arXiv:2207.12598, algorithm 1). In addition, and
        independently of it and of each other, a condition named in `rates` is replaced with the probability there, a
        mask with its tokens: the network learns the effect of each condition without the others (arXiv:2211.09800,
        section 3.2.1). Structures are never replaced.
        """
        if cond is None or (rate == 0 and not any(rates.values())):
            return cond
        rows = jax.tree.leaves(cond)[0].shape[:1]
        together = self.dropped_rows(key, rate, rows[0])
        alone = {
            name: jax.random.bernoulli(jax.random.fold_in(key, i), rates[name], rows)
            for i, name in enumerate(self)
            if rates.get(name)
        }

        def replaced(name: str, value: Array) -> Array:
            if self[name].structure:
                return value
            drop = together | alone.get(self[name].along or name, False)
            null = self[name].rows(1).astype(value.dtype)
            return jnp.where(drop.reshape(-1, *(1,) * (value.ndim - 1)), null, value)

        return {name: replaced(name, value) for name, value in cond.items()}

    def check(self, cond: Mapping[str, np.ndarray]) -> None:
        """Raises ValueError unless `cond` holds these conditions, of the right shapes and with ids in range."""
        for name, value in (self.of(cond) or {}).items():
            spec = self[name].spec
            if np.shape(value)[1:] != spec.shape:
                axes = ", ".join(map(str, ("number", *spec.shape)))
                raise ValueError(f"condition {name!r} has shape {np.shape(value)}; it must be [{axes}]")
            if spec.values and np.size(value):
                low, high = int(np.min(value)), int(np.max(value))
                if low < 0 or high >= spec.values:
                    outside = low if low < 0 else high
                    raise ValueError(f"{name} {outside} is out of range; it must be in 0..{spec.values - 1}")


NO_CONDITIONS = Conditions()


def _classes(request: Request, values: Any, spec: Spec) -> np.ndarray:
    if isinstance(values, np.ndarray) and values.dtype.kind == "U":
        values = values.tolist()
    if isinstance(values, np.ndarray) or not all(isinstance(value, str) for value in values):
        return numbers(request, values, spec)
    ids = [int(value) if value.lstrip("-").isdecimal() else value for value in values]
    if any(isinstance(name, str) for name in ids):
        names = {name: number for number, name in enumerate(request.classes())}
        if unknown := [name for name in ids if isinstance(name, str) and name not in names]:
            close = difflib.get_close_matches(unknown[0], names, 1)
            known = f", or names of classes: {', '.join([*names][:_SHOWN])}{', ...' * (len(names) > _SHOWN)}"
            raise ValueError(
                f"{unknown[0]!r}{f' (did you mean {close[0]!r}?)' if close else ''}: conditions must be class ids in "
                f"0..{spec.values - 1}, such as 0,1,2{known if names else ''}"
            )
        ids = [names.get(name, name) for name in ids]
    return np.array(ids, np.int32)


def _class_words(labels: np.ndarray, describe: Describe) -> list[str]:
    return [str(number) for number in labels.tolist()]


def _text_words(ids: np.ndarray, describe: Describe) -> list[str]:
    return describe(ids)


def _image(request: Request, values: Any, spec: Spec) -> np.ndarray:
    return request.image(values, spec.shape)


def _texts(request: Request, values: Any, spec: Spec) -> np.ndarray:
    if isinstance(values, np.ndarray) and values.dtype.kind not in "UO":
        return numbers(request, values, spec)
    strange = next((value for value in values if not isinstance(value, str)), None)
    if strange is not None:
        raise ValueError(f"a caption must be a string, got {strange!r}")
    return request.tokenize([str(value) for value in values])
