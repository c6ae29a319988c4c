"""Track a commanded velocity on uneven ground that gets harder as the robot gets better.

Letters: N worlds, A actions, F feet, S points of the height scan. The curriculum is that of Rudin et al.
2022, section 3.2: a world has a kind of tile and a level, and its episodes start in the middle of such a
tile.
"""

from __future__ import annotations

import mujoco
import torch
from torch import Tensor

from envs_gpu.mirror import paired
from envs_gpu.observation import ObservationTerm
from envs_gpu.parameters import Parameter, with_defaults
from envs_gpu.physics.base import PhysicsState
from envs_gpu.random import Draws
from envs_gpu.tasks._legged import GROUND
from envs_gpu.tasks._velocity import Velocity
from envs_gpu.tasks.base import Episode, Outcome
from envs_gpu.terms.stage import TILES, add_light_and_sky
from envs_gpu.terrain import KINDS, Terrain

SHADE = (0.7, 0.7, 0.7, 1.0)
"""Darker than the flat floor, because slopes that face the light would be plain white."""


class RoughVelocity(Velocity):
    """The policy does not see the ground; `critic` `[N, 13 + 3A + 3F + S]` also has a scan of its height.

    Heights are above the ground right below. A world that gets near the edge of the ground is truncated.
    """

    terrain = Terrain()
    parameters = (
        # Walking on a slope takes vertical velocity and tilt.
        *with_defaults(Velocity.parameters, vertical_velocity_weight=-0.5, orientation_weight=-1.0),
        Parameter("promotion_share", 0.8, "1", "share of the commanded way that leads a level up", low=0.0),
        Parameter("demotion_share", 0.5, "1", "walking less than this share leads a level down", low=0.0),
        Parameter("edge_margin_m", 1.0, "m", "nearer to the edge of the ground, an episode is cut", low=0.0),
    )
    contacts_per_foot_geom = 4
    num_first_levels = 3
    """The first episode of a world is at one of this many first levels."""
    start_reach_m = 0.3
    """How far from a tile's middle an episode may start, in x and in y."""
    scan_size_m = (1.0, 0.6)
    """Size of the grid of scanned points, along the base and across."""
    scan_points = (11, 7)

    def scene(self) -> mujoco.MjSpec:
        """The scene of `Velocity` on uneven ground, under hard feet.

        A height field is a grid of prisms. A foot that sinks into one is pushed sideways by the inner walls
        of its neighbours. A standing Go1 of menagerie sinks in by 16 mm, with MuJoCo's default hardness by
        1 mm.
        """
        spec = super().scene()
        blank = mujoco.MjSpec().worldbody.add_geom()
        for name in sum(self.foot_geoms, ()):
            spec.geom(name).solimp, spec.geom(name).solref = blank.solimp, blank.solref
        return spec

    def bind(self, model: mujoco.MjModel, device: torch.device) -> None:
        super().bind(model, device)
        self._ground = self.terrain.on(device)
        self._scan = _grid(self.scan_size_m, self.scan_points, device)
        feet_m = 2 * self.robot.base_height_m  # a square that holds the feet of the default pose
        self._footprint = _grid((feet_m, feet_m), (9, 9), device)

    def begin(self, state: PhysicsState, episode: Episode) -> dict[str, Tensor]:
        level, kind = self._next_tile(episode)
        zero = torch.zeros_like(level, dtype=torch.float32)
        tile = {"level": level, "kind": kind}
        progress = {"asked_m": zero, "walked_m": zero.clone(), "fell": torch.zeros_like(level).bool()}
        return super().begin(state, episode) | tile | progress

    def remember(self, state: PhysicsState, episode: Episode, action: Tensor) -> dict[str, Tensor]:
        memory, velocity = episode.memory, state.sensordata[:, self.sensor["velocity"]].float()
        command = memory["command"][:, :2]
        speed = command.square().sum(-1).sqrt()
        along = (command * velocity[:, :2]).sum(-1) / speed.clamp_min(1e-6)
        return super().remember(state, episode, action) | {
            "level": memory["level"].clone(),
            "kind": memory["kind"].clone(),
            "asked_m": memory["asked_m"] + speed * self.control_dt,
            "walked_m": memory["walked_m"] + along * self.control_dt,
            "fell": self._fallen(state, episode.parameters),
        }

    def _privileged_terms(self) -> tuple[ObservationTerm, ...]:
        count = len(self._scan)
        points = torch.nn.functional.pad(self._scan, (0, 1)).double().cpu().numpy()  # [S, 3]
        mirror = paired(points, "scanned points")
        scan = ObservationTerm(
            "height_scan", count, self._height_scan, "m", clip=1.0, mirror=mirror, grid=self.scan_points
        )
        return (*super()._privileged_terms(), scan)

    def outcome(self, state: PhysicsState, episode: Episode, action: Tensor) -> Outcome:
        outcome = super().outcome(state, episode, action)
        measures = outcome.measures | {"terrain_level": episode.memory["level"]}
        at_edge = self._ground.near_edge(state.qpos[:, :2], episode.parameters["edge_margin_m"][:, None])
        return outcome._replace(measures=measures, truncated=at_edge)

    def _next_tile(self, episode: Episode) -> tuple[Tensor, Tensor]:
        """Level and kind `[N]` int64 of the tile that the next episode starts on."""
        memory, random = episode.memory, episode.random
        if not memory:
            return _whole(random, "level", self.num_first_levels), _whole(random, "kind", len(KINDS))
        level = next_level(
            memory["level"],
            memory["walked_m"],
            memory["asked_m"],
            memory["fell"],
            far_m=0.5 * self.terrain.tile_m,
            promotion_share=episode.parameters["promotion_share"],
            demotion_share=episode.parameters["demotion_share"],
            after_last=_whole(random, "level", self.terrain.num_levels),
            num_levels=self.terrain.num_levels,
        )
        return level, memory["kind"]

    def _start_position(self, episode: Episode) -> Tensor:
        offset = episode.random.uniform("start_place", 2, -self.start_reach_m, self.start_reach_m)
        xy = self._ground.tile_middle(*self._next_tile(episode)) + offset
        highest = self._ground.height_at(xy[:, None] + self._footprint).amax(-1, keepdim=True)
        return torch.cat((xy, highest + self.robot.base_height_m), -1)

    def _above_ground(self, position: Tensor) -> Tensor:
        return position[..., 2] - self._ground.height_at(position[..., :2])

    def _height_scan(self, state: PhysicsState, _: Episode) -> Tensor:
        """How far the ground is below the base `[N, S]`, m, at points that turn with its heading."""
        qpos = state.qpos
        w, x, y, z = qpos[:, 3:7].unbind(-1)
        heading = torch.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
        cos, sin = heading.cos()[:, None], heading.sin()[:, None]
        ahead, left = self._scan.unbind(-1)
        points = torch.stack((cos * ahead - sin * left, sin * ahead + cos * left), -1)  # [N, S, 2]
        ground = self._ground.height_at(qpos[:, None, :2] + points)
        return qpos[:, 2:3] - ground

    def _add_ground(self, spec: mujoco.MjSpec) -> None:
        add_light_and_sky(spec)
        self.terrain.add_to(spec, GROUND, material=TILES, rgba=SHADE, contype=1, conaffinity=0)


def next_level(
    level: Tensor,
    walked_m: Tensor,
    asked_m: Tensor,
    fell: Tensor,
    *,
    far_m: float,
    promotion_share: float | Tensor,
    demotion_share: float | Tensor,
    after_last: Tensor,
    num_levels: int,
) -> Tensor:
    """The level `[N]` after an episode.

    A world goes a level up if it did not fall, and walked at least `far_m` and `promotion_share` of what was
    asked for. It goes a level down if it fell or walked less than `demotion_share` of that. A world that
    completes the last level goes to `after_last`, so that all levels stay in the batch.

    Args:
        level: `[N]` int64, from 0.
        walked_m: `[N]` distance along the commands' directions.
        asked_m: `[N]` distance at the commands' speeds.
        fell: `[N]` bool.
        far_m: a shorter distance is too short to judge.
        promotion_share: a number, or `[N]`; 0.8 in the paper.
        demotion_share: a number, or `[N]`; 0.5 in the paper.
        after_last: `[N]` int64.
        num_levels: L.
    """
    up = ~fell & (walked_m >= far_m) & (walked_m >= promotion_share * asked_m)
    down = fell | (walked_m < demotion_share * asked_m)
    level = level + up.long() - down.long()
    return torch.where(level >= num_levels, after_last, level.clamp_min(0))


def _whole(random: Draws, name: str, count: int) -> Tensor:
    """`[N]` int64 whole numbers from 0 to `count - 1`."""
    return random.uniform(name, 1, 0.0, count).long().squeeze(-1)


def _grid(size_m: tuple[float, float], points: tuple[int, int], device: torch.device) -> Tensor:
    """`[points, 2]` x and y of a grid around the origin, m."""
    along, across = (
        torch.linspace(-0.5 * size, 0.5 * size, count, device=device)
        for size, count in zip(size_m, points, strict=True)
    )
    return torch.cartesian_prod(along, across)
