"""MuJoCo Warp's batch renderer: one kernel casts a ray for every pixel of every world."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import envs_gpu.physics._quiet_warp  # noqa: F401 - before anything that imports Warp

# isort: split
import mujoco
import mujoco_warp as mjw
import torch
import warp as wp
from torch import Tensor

from envs_gpu import bridge
from envs_gpu.pixels import Painter, PixelOptions

# On a CPU: few enough that a single world to draw wastes little, enough to repay the launches.
WORLDS_PER_BLOCK_CPU = 4


class WarpPainter(Painter):
    """Blocks of worlds, each drawn by one recorded graph: one block on CUDA, one a thread on the CPU.

    Args:
        model: the scene.
        camera: index of the camera.
        options: width and height.
        num_worlds: N.
        device: `cpu` or `cuda`.
        num_threads: blocks that are drawn at the same time on a CPU.

    Raises:
        NotImplementedError: the model has what MuJoCo Warp does not know.
        ValueError: likewise.
    """

    name = "warp"

    def __init__(
        self,
        model: mujoco.MjModel,
        camera: int,
        options: PixelOptions,
        num_worlds: int,
        device: torch.device,
        num_threads: int,
    ) -> None:
        wp.init()
        on_cpu = device.type == "cpu"
        self._size = min(num_worlds, WORLDS_PER_BLOCK_CPU) if on_cpu else num_worlds
        num_blocks = min(num_threads, -(-num_worlds // self._size)) if on_cpu else 1
        self._blocks = [_Block(model, camera, options, self._size, device) for _ in range(num_blocks)]
        # The calling thread draws too.
        self._helpers = ThreadPoolExecutor(max(1, num_blocks - 1), "pixels")

    def draw(self, qpos: Tensor) -> Tensor:
        chunks = qpos.split(self._size)
        pictures: list[Tensor] = [qpos] * len(chunks)
        queue = iter(range(len(chunks)))

        def take_turns(block: _Block) -> None:
            for index in queue:
                pictures[index] = block.draw(chunks[index])

        helping = [self._helpers.submit(take_turns, block) for block in self._blocks[1 : len(chunks)]]
        take_turns(self._blocks[0])
        for helper in helping:
            helper.result()
        return torch.cat(pictures)

    def close(self) -> None:
        self._helpers.shutdown()


class _Block:
    """Positions in, pictures out, for a fixed number of worlds."""

    def __init__(
        self, model: mujoco.MjModel, camera: int, options: PixelOptions, num_worlds: int, device: torch.device
    ) -> None:
        self._device = device
        wp_device = wp.device_from_torch(device)
        with wp.ScopedDevice(wp_device):
            self._model = mjw.put_model(model)
            # Nothing is simulated: there are no contacts or constraints to hold.
            self._data = mjw.put_data(model, mujoco.MjData(model), num_worlds, nconmax=1, njmax=1)
            self._context = mjw.create_render_context(
                model,
                num_worlds,
                cam_res=(options.width, options.height),
                cam_active=[camera],
                render_rgb=True,
                render_depth=False,
                render_seg=False,
                render_skybox=False,
                enable_specular=False,  # a mirrored sun would whiten half the floor, as it does not in OpenGL
            )
            self._rgb = wp.zeros((num_worlds, options.height, options.width), dtype=wp.vec3)
            self._render()  # compiles the kernels, which a recording must not do
            wp.synchronize_device(wp_device)
            with wp.ScopedCapture() as capture:
                self._render()
        self._graph = capture.graph
        self._qpos = bridge.warp_to_torch(self._data.qpos)
        self._picture = wp.to_torch(self._rgb)  # [worlds, H, W, 3] in 0..1

    def draw(self, qpos: Tensor) -> Tensor:
        """`[k, nq]` -> `[k, H, W, 3]` uint8, for at most as many worlds as the block has."""
        self._qpos[: len(qpos)].copy_(qpos)
        on_cuda = self._device.type == "cuda"
        wp.capture_launch(self._graph, stream=wp.stream_from_torch(self._device) if on_cuda else None)
        return self._picture[: len(qpos)].mul(255.0).round_().to(torch.uint8)

    def _render(self) -> None:
        model, data = self._model, self._data
        mjw.kinematics(model, data)
        mjw.com_pos(model, data)
        mjw.camlight(model, data)
        mjw.refit_bvh(model, data, self._context)
        mjw.render(model, data, self._context)
        mjw.get_rgb(self._context, 0, self._rgb)
