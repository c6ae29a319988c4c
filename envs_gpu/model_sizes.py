"""Numbers in a robot's file that ask for more than any machine has, refused before MuJoCo sees them."""

from __future__ import annotations

import math

from envs_gpu.errors import ModelError
from envs_gpu.model_files import ModelText
from envs_gpu.model_text import Element

MOST_NUMBERS = 1_000_000
"""For the attributes of `<size>` that say how many numbers each element, or the model, has room for."""
MOST_KEYFRAMES = 10_000
"""MuJoCo's compiler needs time with the square of their number, which is minutes at ten times as many."""
MOST_ELEMENTS = 30_000
"""That `count` may make. Such as 10,000 bodies with a joint and a geom, which compile in a minute."""
MOST_VERTICES = 1_000_000
"""Of a flex whose vertices are not bodies."""
MOST_VALUES = 2**28
"""Of a height field, or pixels of a texture: 16,384 times 16,384."""
_LIMITS = {"nkey": MOST_KEYFRAMES, "nuserdata": MOST_NUMBERS, "njmax": MOST_NUMBERS, "nconmax": MOST_NUMBERS}
_GRIDS = {"hfield": ("nrow", "ncol"), "texture": ("width", "height")}
_COUNTING = ("replicate", "composite", "flexcomp")


def check_sizes(text: ModelText) -> None:
    """Check what a model asks for by numbers alone.

    Raises:
        ModelError: a size, or what a `count` makes, is far beyond any robot.
    """
    for element in text.every_element():
        if element.tag == "size":
            _check_size(element)
        if grid := _GRIDS.get(element.tag):
            _check_grid(element, grid)
    children = [document[0] for document in text.child_elements if document]
    written = sum(len(document) for document in text.child_elements)
    attached = sum(_made_by(child, written) for child in children)
    if text.elements:
        _made_by(text.elements[0], attached)


def _check_size(element: Element) -> None:
    for attribute, value in element.attributes.items():
        most = MOST_NUMBERS if attribute.startswith("nuser_") else _LIMITS.get(attribute)
        if most is not None and _product(value) > most:
            raise ModelError(f'{element} {attribute}="{_short(value)}": more than {most:,}; write less')


def _check_grid(element: Element, names: tuple[str, str]) -> None:
    across, down = (element.attributes.get(name, "1") for name in names)
    if _product(f"{across} {down}") > MOST_VALUES:
        sizes = f'{names[0]}="{_short(across)}" {names[1]}="{_short(down)}"'
        raise ModelError(f"{element} {sizes}: more than {MOST_VALUES:,} values; write less")


def _made_by(element: Element, attached: float) -> float:
    """How many elements MuJoCo makes of one and what is in it, where an attached model has `attached`."""
    inside = sum(_made_by(child, attached) for child in element.children)
    if element.tag not in _COUNTING:
        return 1 + inside + (attached if element.tag == "attach" else 0)
    count = _product(element.attributes.get("count", "1"))
    made = count * inside if element.tag == "replicate" else count + inside
    is_soft = element.tag == "flexcomp" and element.attributes.get("dof", "full") != "full"
    most = MOST_VERTICES if is_soft else MOST_ELEMENTS
    if made > most:
        value = _short(element.attributes.get("count", "1"))
        raise ModelError(f'{element} count="{value}": makes more than {most:,} elements; write less')
    return made * MOST_ELEMENTS / MOST_VERTICES if is_soft else made


def _product(value: str) -> float:
    """The product of the numbers in a text that are above one; what is no number is for MuJoCo to refuse."""
    product = 1.0
    for token in value.split():
        try:
            number = float(token)
        except ValueError:
            continue
        product *= number if math.isfinite(number) and number > 1 else 1.0
    return product


def _short(value: str) -> str:
    return value if len(value) <= 40 else value[:37] + "..."
