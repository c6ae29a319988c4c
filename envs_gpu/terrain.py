"""Uneven ground: tiles of one kind a column and one difficulty a row, as one height field around the origin.

Letters: N worlds, C columns (along x) and R rows (along y) of vertices. Levels go along x, kinds along y.
After Rudin et al. 2022, "Learning to Walk in Minutes Using Massively Parallel Deep Reinforcement Learning".
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import mujoco
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BASE_M = 0.5
"""Thickness of the ground below its lowest point."""


@dataclass(frozen=True)
class Terrain:
    """Heights are zero along the edges of every tile, and on the border around all of them.

    Every tile has a level platform in its middle, except where the ground is random. Lengths in cells are
    multiples of `cell_m`: a step's riser takes one cell, the level part of its tread the rest.
    """

    cell_m: float = 0.1
    """Between neighbouring vertices; contacts cost more on a finer ground."""
    tile_cells: int = 48
    border_cells: int = 30
    """Level ground around the tiles."""
    num_levels: int = 6
    platform_cells: int = 6
    """From a tile's middle to the edge of its platform."""
    tread_cells: int = 3
    step_m: tuple[float, float] = (0.02, 0.12)
    """Rise of a stair's step, at the first level and at the last; so are the ranges below."""
    slope: tuple[float, float] = (0.05, 0.4)
    """Rise over run."""
    roughness_m: tuple[float, float] = (0.005, 0.045)
    """Vertices are this far above or below zero, at most."""
    seed: int = 0

    @property
    def tile_m(self) -> float:
        """Side of a tile."""
        return self.tile_cells * self.cell_m

    @functools.cached_property
    def heights(self) -> NDArray[np.float32]:
        """`[R, C]`, m: row r is at y = (r - (R - 1) / 2) cell_m, column c likewise in x."""
        random = np.random.default_rng(self.seed)
        tiles = self.tile_cells
        inner = np.zeros((len(KINDS) * tiles + 1, self.num_levels * tiles + 1))
        for row, make_tile in enumerate(KINDS.values()):
            for level in range(self.num_levels):
                difficulty = level / max(self.num_levels - 1, 1)
                here = np.s_[row * tiles :, level * tiles :]
                inner[here][: tiles + 1, : tiles + 1] = make_tile(self, difficulty, random)
        return np.pad(inner, self.border_cells).astype(np.float32)

    def add_to(self, spec: mujoco.MjSpec, geom: str, **attributes: object) -> None:
        """Add the ground as a geom, with the `attributes` of `MjSpec.add_geom`."""
        heights = self.heights
        low, high = float(heights.min()), float(heights.max())
        half = [0.5 * self.cell_m * (count - 1) for count in (heights.shape[1], heights.shape[0])]
        spec.add_hfield(
            name=geom,
            nrow=heights.shape[0],
            ncol=heights.shape[1],
            size=(*half, max(high - low, self.cell_m), BASE_M),
            userdata=((heights - low) / max(high - low, self.cell_m)).ravel(),
        )
        kind = mujoco.mjtGeom.mjGEOM_HFIELD
        spec.worldbody.add_geom(name=geom, type=kind, hfieldname=geom, pos=(0, 0, low), **attributes)

    def on(self, device: torch.device) -> Ground:
        """The same heights as tensors."""
        return Ground(self, device)


class Ground:
    """Where a `Terrain` is how high, in torch, for positions in the dtype of whoever asks."""

    def __init__(self, terrain: Terrain, device: torch.device) -> None:
        self._cell_m, self._tile_m = terrain.cell_m, terrain.tile_m
        num_rows, self._num_columns = terrain.heights.shape
        self._table = torch.tensor(terrain.heights.ravel(), device=device)  # [R * C]
        self._last_cell = torch.tensor((self._num_columns - 2, num_rows - 2), device=device)
        self._half_m = 0.5 * terrain.cell_m * (self._last_cell + 1)  # [2], x and y
        self._middle = 0.5 * torch.tensor((terrain.num_levels - 1, len(KINDS) - 1), device=device)

    def height_at(self, xy: Tensor) -> Tensor:
        """Heights `[...]` of the ground at `xy` `[..., 2]`, m; beyond its edge, that of the edge.

        MuJoCo cuts every cell into two triangles along the diagonal from its lowest x and y.
        """
        cells = ((xy + self._half_m) / self._cell_m).nan_to_num(0.0).clamp_min(0.0)
        cells = torch.minimum(cells, self._last_cell + 1)
        corner = torch.minimum(cells.floor(), self._last_cell)
        u, v = (cells - corner).unbind(-1)
        column, row = corner.long().unbind(-1)
        first = row * self._num_columns + column
        h00, h10 = self._table[first], self._table[first + 1]
        h01, h11 = self._table[first + self._num_columns], self._table[first + self._num_columns + 1]
        below_diagonal = h00 + u * (h10 - h00) + v * (h11 - h10)
        above_diagonal = h00 + v * (h01 - h00) + u * (h11 - h01)
        return torch.where(u > v, below_diagonal, above_diagonal)

    def tile_middle(self, level: Tensor, kind: Tensor) -> Tensor:
        """`[N, 2]` x and y of the tiles' middles, m, for `level` and `kind` `[N]` int64."""
        return (torch.stack((level, kind), -1) - self._middle) * self._tile_m

    def near_edge(self, xy: Tensor, margin_m: float | Tensor) -> Tensor:
        """`[N]` bool: `xy` `[N, 2]` is less than `margin_m`, a number or `[N, 1]`, inside the edge."""
        return (xy.abs() > self._half_m - margin_m).any(-1)


def _flat(terrain: Terrain, difficulty: float, random: np.random.Generator) -> NDArray[np.float64]:
    return np.zeros((terrain.tile_cells + 1,) * 2)


def _rough(terrain: Terrain, difficulty: float, random: np.random.Generator) -> NDArray[np.float64]:
    height = _between(terrain.roughness_m, difficulty)
    heights = random.uniform(-height, height, (terrain.tile_cells + 1,) * 2)
    return np.where(_rings(terrain) > 0, heights, 0.0)


def _slope(terrain: Terrain, difficulty: float, random: np.random.Generator) -> NDArray[np.float64]:
    """A pyramid without its top."""
    slope = _between(terrain.slope, difficulty)
    return slope * terrain.cell_m * np.minimum(_rings(terrain), _platform_ring(terrain))


def _stairs(terrain: Terrain, difficulty: float, random: np.random.Generator) -> NDArray[np.float64]:
    """A stepped pyramid: who leaves its middle walks down."""
    rings = np.minimum(_rings(terrain), _platform_ring(terrain))
    return _between(terrain.step_m, difficulty) * (rings // terrain.tread_cells)


def _pit(terrain: Terrain, difficulty: float, random: np.random.Generator) -> NDArray[np.float64]:
    """The same upside down: who leaves its middle climbs."""
    return -_stairs(terrain, difficulty, random)


KINDS: dict[str, Callable[[Terrain, float, np.random.Generator], NDArray[np.float64]]] = {
    "flat": _flat,
    "rough": _rough,
    "slope": _slope,
    "stairs_down": _stairs,
    "stairs_up": _pit,
}
"""Tiles by name: heights `[tile_cells + 1, tile_cells + 1]` for a difficulty between 0 and 1."""


def _rings(terrain: Terrain) -> NDArray[np.int64]:
    """How many cells every vertex of a tile is away from the tile's nearest edge."""
    along = np.arange(terrain.tile_cells + 1)
    inward = np.minimum(along, along[::-1])
    return np.minimum(inward[:, None], inward)


def _platform_ring(terrain: Terrain) -> int:
    return terrain.tile_cells // 2 - terrain.platform_cells


def _between(ends: tuple[float, float], difficulty: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * difficulty
