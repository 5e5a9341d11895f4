"""What can be seen of a SMILES text without chemistry: whether parentheses, brackets and rings are closed."""

from __future__ import annotations

import re

_ATOM = re.compile(r"\[[^\[\]]+\]")  # an atom with its charge, isotope or hydrogens
_RING = re.compile(r"%\d\d|\d")


def closed(text: str) -> bool:
    """Whether parentheses are balanced and not empty, brackets hold an atom, and every ring that is opened is closed.

    Necessary for a molecule, not sufficient: valences and aromaticity are not looked at. A ring number is opened where
    it occurs first and closed where it occurs next; digits in brackets are no ring numbers.
    """
    text = _ATOM.sub("X", text)
    if not text or "[" in text or "]" in text or "()" in text or text[0] in "()%0123456789":
        return False
    depth = 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth < 0:
            return False
    rings = [ring.lstrip("%").zfill(2) for ring in _RING.findall(text)]
    return depth == 0 and all(rings.count(ring) % 2 == 0 for ring in set(rings))
