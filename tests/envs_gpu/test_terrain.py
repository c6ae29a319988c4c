"""Uneven ground: heights against rays that C MuJoCo casts on its own height field, and the tiles' shapes."""

import mujoco
import numpy as np
import pytest
import torch

from envs_gpu.terrain import KINDS, Terrain

CPU = torch.device("cpu")
TERRAIN = Terrain()
FLAT, ROUGH, SLOPE, STAIRS_DOWN, STAIRS_UP = range(len(KINDS))


def tile(level, kind):
    """`[tile_cells + 1, tile_cells + 1]` heights of a tile, indexed by y and x."""
    size, border = TERRAIN.tile_cells, TERRAIN.border_cells
    row, column = border + kind * size, border + level * size
    return TERRAIN.heights[row : row + size + 1, column : column + size + 1]


@pytest.fixture(scope="module")
def model():
    spec = mujoco.MjSpec()
    TERRAIN.add_to(spec, "ground")
    return spec.compile()


def test_heights_are_where_mujocos_rays_end(model):
    """Also within 1e-6 m of vertices and edges, and through MJCF as text, which Newton reads.

    Right on them, rays of MuJoCo slip through between the triangles.
    """
    random = np.random.default_rng(0)
    half = model.hfield_size[0, :2]
    points = random.uniform(-half, half, (3000, 2))
    points[:500] = TERRAIN.cell_m * np.round(points[:500] / TERRAIN.cell_m)
    points[500:1000, 0] = TERRAIN.cell_m * np.round(points[500:1000, 0] / TERRAIN.cell_m)
    points = (points + random.uniform(-1e-6, 1e-6, points.shape)).clip(0.999 * -half, 0.999 * half)
    ours = TERRAIN.on(CPU).height_at(torch.tensor(points)).numpy()
    assert np.ptp(ours) > 1.0
    spec = mujoco.MjSpec()
    TERRAIN.add_to(spec, "ground")
    spec.compile()
    for one in (model, mujoco.MjModel.from_xml_string(spec.to_xml())):
        data, hit = mujoco.MjData(one), np.zeros(1, np.int32)
        mujoco.mj_forward(one, data)
        down = np.array([0.0, 0.0, -1.0])
        rays = [
            3.0 - mujoco.mj_ray(one, data, np.array([x, y, 3.0]), down, None, 1, -1, hit) for x, y in points
        ]
        np.testing.assert_allclose(ours, rays, atol=3e-6)


def test_heights_beyond_the_edge_and_of_nowhere():
    ground = TERRAIN.on(CPU)
    far = torch.tensor([[1e9, 0.0], [-1e9, 3.0], [float("inf"), -float("inf")], [float("nan"), 0.0]])
    assert ground.height_at(far).isfinite().all()
    assert torch.equal(ground.height_at(far[:3]), torch.zeros(3))  # the border is level
    half_x, half_y = 0.5 * TERRAIN.cell_m * (np.array(TERRAIN.heights.shape[::-1]) - 1)
    inside = torch.tensor([[half_x - 1.01, 0.0], [0.0, 1.01 - half_y]])
    outside = torch.tensor([[half_x - 0.99, 0.0], [0.0, 0.99 - half_y]])
    assert not ground.near_edge(inside, 1.0).any()
    assert ground.near_edge(outside, 1.0).all()


def test_same_seed_same_ground():
    assert np.array_equal(Terrain(seed=3).heights, Terrain(seed=3).heights)
    assert not np.array_equal(Terrain(seed=3).heights, Terrain(seed=4).heights)


def test_tiles_fit_together():
    for level in range(TERRAIN.num_levels):
        for kind in range(len(KINDS)):
            heights = tile(level, kind)
            for edge in (heights[0], heights[-1], heights[:, 0], heights[:, -1]):
                assert (edge == 0).all()


def test_tiles_are_what_they_are_called():
    last, middle = TERRAIN.num_levels - 1, TERRAIN.tile_cells // 2
    num_steps = (middle - TERRAIN.platform_cells) // TERRAIN.tread_cells
    for level, (rise, slope, roughness) in {0: (0.02, 0.05, 0.005), last: (0.12, 0.4, 0.045)}.items():
        assert (tile(level, FLAT) == 0).all()
        down, up = tile(level, STAIRS_DOWN), tile(level, STAIRS_UP)
        np.testing.assert_array_equal(down, -up)
        treads = np.unique(down[middle])
        np.testing.assert_allclose(treads, rise * np.arange(num_steps + 1), atol=1e-6)
        widths = [(down[middle, : middle + 1] == tread).sum() for tread in treads[:-1]]
        assert set(widths) == {TERRAIN.tread_cells}  # vertices: the riser's cell lies between two treads
        pyramid = tile(level, SLOPE)
        rise_of_cell = np.diff(pyramid[middle, : middle - TERRAIN.platform_cells + 1])
        np.testing.assert_allclose(rise_of_cell, slope * TERRAIN.cell_m, atol=1e-6)
        assert np.ptp(pyramid[middle, middle - 6 : middle + 7]) == 0
        inner = tile(level, ROUGH)[1:-1, 1:-1]
        assert 0.98 * roughness < np.abs(inner).max() <= roughness
        assert abs(inner.mean()) < 0.05 * roughness


def test_middles_of_tiles():
    """Looked up on the ground itself: the platforms of stairs and slopes are the highest there is."""
    ground = TERRAIN.on(CPU)
    level = torch.arange(TERRAIN.num_levels)
    for kind, top in ((STAIRS_DOWN, 1.0), (STAIRS_UP, -1.0), (SLOPE, 1.0), (FLAT, 0.0)):
        middles = ground.tile_middle(level, torch.full_like(level, kind))
        expected = [top * np.abs(tile(row, kind)).max() for row in level.tolist()]
        np.testing.assert_allclose(ground.height_at(middles), expected, atol=1e-6)
