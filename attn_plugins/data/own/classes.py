"""From the values of masks to classes, their names and what is no class; nothing is guessed that changes a result."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...files import read_lines
from .scan import Found, Value

__all__ = ["Classes", "decide_classes", "parse_values", "said"]

_VOID = 255
_VOID_NAMES = frozenset({"void", "unlabelled", "unlabeled", "ignore", "ignored", "dontcare", "don't care"})
# What a label map can tell apart beside the void label.
_MOST = 254


@dataclass(frozen=True)
class Classes:
    """Classes 0, 1, … of a data set.

    Attributes:
        names: of each class.
        values: the value, or the colour, that each class has in the masks.
        void: values that are no class: their pixels are neither trained nor measured on.
        palette: a colour for each class.
        void_from: where it is known from that those are no class; for the user to read.
    """

    names: tuple[str, ...]
    values: tuple[Value, ...]
    void: tuple[Value, ...]
    palette: tuple[tuple[int, int, int], ...]
    void_from: str


def said(value: Value) -> str:
    """A value as the command line takes it: ``11``, ``128,0,0``."""
    return str(value) if isinstance(value, int) else ",".join(map(str, value))


def parse_values(texts: Sequence[str]) -> tuple[Value, ...]:
    """Values as ``said`` writes them, and ``#800000``; ``none`` alone for no value.

    Raises:
        ValueError: something else; it is named.
    """
    if list(texts) == ["none"]:
        return ()
    return tuple(map(_parsed, texts))


def _parsed(text: str) -> Value:
    if re.fullmatch(r"\d+", text):
        return int(text)
    if re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)
    parts = text.split(",")
    if len(parts) == 3 and all(re.fullmatch(r"\d{1,3}", part.strip()) for part in parts):
        return int(parts[0]), int(parts[1]), int(parts[2])
    raise ValueError(f"{text!r} is no value of a mask: write 11, or a colour as 128,0,0 or #800000, or none")


def decide_classes(found: Found, file: Path | None = None, void: Sequence[Value] | None = None) -> Classes:
    """The classes of masks.

    Without ``file``, every value that is not void is a class, named by its value. Void is what ``void`` says; else what
    ``file`` calls so; else 255, where there are two other values at least. Where none of that tells, nobody can know
    whether a value means "none of the classes", and that changes every number that is measured.

    Args:
        found: what the masks hold.
        file: class names, see ``read_names``.
        void: values that are no class; an empty sequence for none.

    Raises:
        ValueError: it is not known what is void; masks of both kinds, or with more values than there can be; a value
            that ``file`` does not name, or fewer than two classes.
    """
    values = sorted(found.pixels, key=lambda value: (isinstance(value, tuple), value))
    if len({isinstance(value, int) for value in values}) > 1:
        raise ValueError("some masks are in colour and some in grey or palette values: convert them to one kind")
    listed = _read_names(file, values, set(void or ())) if file is not None else None
    named_void = {v for v, name in (listed or {}).items() if name.lower() in _VOID_NAMES}
    if void is not None:
        chosen, told = set(void), "as --void says"
    elif named_void:
        chosen, told = named_void, f"as {file} names it"
    elif _VOID in values and len(values) > 2:
        chosen, told = {_VOID}, "255, as most data sets have it; --void says otherwise"
    else:
        raise ValueError(_unknown_void(found, values))
    names = listed or {value: said(value) for value in values}
    classes = {value: name for value, name in names.items() if value not in chosen}
    unnamed = [value for value in values if value not in classes and value not in chosen]
    if unnamed:
        raise ValueError(
            f"the masks have values that {file} does not name: {_list(unnamed)}. Add them, or give them as --void"
        )
    if not 2 <= len(classes) <= _MOST:
        raise ValueError(f"the masks have {len(classes)} classes ({_list(list(classes))}); a probe needs 2 to {_MOST}")
    return Classes(
        tuple(classes.values()),
        tuple(classes),
        tuple(sorted(chosen, key=str)),
        _palette(list(classes), found.palette),
        told,
    )


def _unknown_void(found: Found, values: Sequence[Value]) -> str:
    total = sum(found.pixels.values())
    rows = sorted(values, key=lambda value: -found.pixels[value])[:24]
    told = "\n".join(
        f"    {said(value):>12}  {100 * found.pixels[value] / total:6.2f} % of pixels, in {found.images[value]} masks"
        for value in sorted(rows, key=lambda value: (isinstance(value, tuple), value))
    )
    # Black among colours and the last number are what most data sets take; it is an example, no guess.
    example = said(values[0] if isinstance(values[0], tuple) else values[-1])
    return (
        f"the masks have these {len(values)} values, and nothing tells whether one of them means 'no class':\n{told}\n"
        f"Give --void VALUE (for example --void {example}), or --void none if every value is a class"
    )


def _list(values: Sequence[Value]) -> str:
    return ", ".join(map(said, values[:8])) + (", …" if len(values) > 8 else "")


def _read_names(file: Path, values: Sequence[Value], void: set[Value]) -> dict[Value, str]:
    """{value: name} of a file with a class a line: ``NAME``, ``VALUE NAME``, ``R G B NAME`` or ``NAME,R,G,B``.

    Names alone belong to the values 0, 1, … where no value is beyond them, and else to the values in their order.

    Raises:
        ValueError: no names, lines of different kinds, a value twice, or names alone that do not fit the values.
    """
    lines = [line.strip() for line in read_lines(file) if line.strip()]
    if lines and re.fullmatch(r"(?i)name\W+r(ed)?\W+g(reen)?\W+b(lue)?", lines[0]):
        lines = lines[1:]
    if not lines:
        raise ValueError(f"{file} names no class: write a class a line")
    named = [_line(line, isinstance(values[0], tuple)) for line in lines]
    if all(value is None for value, _ in named):
        return _in_order(file, [name for _, name in named], values, void)
    result: dict[Value, str] = {}
    for line, (value, name) in zip(lines, named, strict=True):
        if value is None or value in result:
            raise ValueError(f"{file}: {line!r} {'has no value' if value is None else 'repeats a value'}")
        result[value] = name
    return result


def _line(line: str, colours: bool) -> tuple[Value | None, str]:
    number = r"(\d{1,5})"
    gap = r"[\s,;:]+"
    if colours:
        first = re.fullmatch(rf"{number}{gap}{number}{gap}{number}{gap}(\S.*)", line)
        last = re.fullmatch(rf"(\S.*?){gap}{number}{gap}{number}{gap}{number}", line)
        if first:
            return (int(first[1]), int(first[2]), int(first[3])), first[4]
        if last:
            return (int(last[2]), int(last[3]), int(last[4])), last[1]
        return None, line
    match = re.fullmatch(rf"{number}{gap}(\S.*)", line)
    return (int(match[1]), match[2]) if match else (None, line)


def _in_order(file: Path, names: Sequence[str], values: Sequence[Value], void: set[Value]) -> dict[Value, str]:
    own = [value for value in values if value not in void and value != _VOID]
    if all(isinstance(value, int) and value < len(names) for value in own):
        return dict(enumerate(names))
    if len(own) == len(names):
        return dict(zip(own, names, strict=True))
    raise ValueError(
        f"{file} has {len(names)} names, the masks have {len(own)} values ({_list(own)}): write VALUE NAME lines"
    )


def _palette(values: Sequence[Value], stored: Mapping[int, tuple[int, int, int]]) -> tuple[tuple[int, int, int], ...]:
    """The masks' own colours; else colours that are as far apart as they can be."""
    own = [value if isinstance(value, tuple) else stored.get(value) for value in values]
    if all(colour is not None for colour in own) and len(set(own)) == len(own):
        return tuple(colour for colour in own if colour is not None)
    colours = []
    for number in range(len(values)):
        # The golden ratio spreads hues; brightness tells neighbours apart.
        hue = number * 0.618034 % 1
        red, green, blue = colorsys.hsv_to_rgb(hue, 0.85 - 0.3 * (number // 7 % 2), (0.95, 0.78, 0.62)[number % 3])
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return tuple(colours)
