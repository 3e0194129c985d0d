"""Two objects, where each of them shall be, and their phrases."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ....attn_processors.modulation import Scene
from ..render import coverage
from ..scene import Ask, sample_scene
from ..training.data import is_held_out

__all__ = ["Box", "Prompt", "bounds", "prompts"]

SIDE = 256  # pixels of the drawing that boxes are taken from

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Prompt:
    """An unseen caption of two objects without a relation, and the box of each."""

    ask: Ask
    boxes: tuple[Box, Box]

    def scene(self, *, swapped: bool = False) -> Scene:
        """The two phrases in their boxes, or each in that of the other."""
        boxes = self.boxes[::-1] if swapped else self.boxes
        names = [f"{colour} {shape}" for colour, shape in self.ask.objects]
        return Scene(self.ask.caption, regions=dict(zip(names, boxes, strict=True)))

    def alone(self) -> list[str]:
        """A caption for each object by itself, on the same background."""
        return [replace(self.ask, objects=(thing,)).caption for thing in self.ask.objects]

    def mismatched(self) -> Scene:
        """The colour of each with the shape of the other: a scene that is wrong."""
        (colour, shape), (colour2, shape2) = self.ask.objects
        marked = self.ask.caption.replace(
            f"a {colour} {shape}", f"a [{colour}]{{a}} [{shape}]{{b}}", 1
        ).replace(f"a {colour2} {shape2}", f"a [{colour2}]{{b}} [{shape2}]{{a}}", 1)
        return Scene(marked)


def prompts(number: int, seed: int) -> list[Prompt]:
    """`number` of them, with shapes that differ; boxes are those of a scene drawn for each."""
    rng = np.random.default_rng(seed)
    found: list[Prompt] = []
    while len(found) < number:
        scene = sample_scene(rng, 2)
        ask = replace(scene.ask, relation=None)
        if is_held_out(ask) and ask.objects[0][1] != ask.objects[1][1]:
            boxes = (bounds(coverage(thing, SIDE, SIDE) > 0.5) for thing in scene.objects)
            found.append(Prompt(ask, _apart(*boxes)))
    return found


def bounds(region: np.ndarray) -> Box:
    """The box around a mask [height, width]."""
    rows, columns = region.any(1).nonzero()[0], region.any(0).nonzero()[0]
    height, width = region.shape
    return (
        float(columns[0] / width),
        float(rows[0] / height),
        float((columns[-1] + 1) / width),
        float((rows[-1] + 1) / height),
    )


def _apart(one: Box, two: Box) -> tuple[Box, Box]:
    """Objects that do not touch may have boxes that do: such a pair is cut at the middle."""
    gaps = [max(one[i], two[i]) - min(one[i + 2], two[i + 2]) for i in (0, 1)]
    if max(gaps) >= 0:
        return one, two
    axis = int(np.argmax(gaps))
    first, second = sorted((one, two), key=lambda box: box[axis])
    middle = (second[axis] + first[axis + 2]) / 2
    cut = {first: _with(first, axis + 2, middle), second: _with(second, axis, middle)}
    return cut[one], cut[two]


def _with(box: Box, index: int, value: float) -> Box:
    return tuple(value if i == index else v for i, v in enumerate(box))
