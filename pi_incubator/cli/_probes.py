"""What `pi-doctor` tries, each in a process of its own: it prints one line of detail, or raises."""

from __future__ import annotations

import os


def gpu() -> None:
    """Multiply two matrices on the GPU."""
    import torch

    if torch.version.cuda is None:
        raise RuntimeError("this torch is built for the CPU only")
    x = torch.ones(64, 64, device="cuda")
    assert (x @ x).sum().item() == 64**3
    properties = torch.cuda.get_device_properties(0)
    memory_gib = properties.total_memory / 2**30
    print(f"{properties.name}, {memory_gib:.0f} GiB, torch built for CUDA {torch.version.cuda}")


def physics(backend: str) -> None:
    """Step two worlds of the smallest task."""
    import torch

    from envs_gpu.make import make_env

    on_gpu = torch.cuda.is_available() and backend != "mujoco"
    device = torch.device("cuda" if on_gpu else "cpu")
    env = make_env("cartpole_balance", backend=backend, num_envs=2, device=device)
    for _ in range(3):
        result = env.step(torch.zeros(2, env.spec.action_dim, device=device))
    assert result.obs["policy"].isfinite().all(), "the observation is not finite"
    env.close()
    print(f"stepped on {device}")


def rendering() -> None:
    """Draw one picture without a screen."""
    from envs_gpu.render import Renderer
    from envs_gpu.tasks import TASKS

    model = TASKS.get("cartpole_balance")().scene().compile()
    renderer = Renderer(model, width=64, height=48)
    picture = renderer.render(model.qpos0)
    assert picture.std() > 0, "the picture is empty"
    print(f"drew a picture with MUJOCO_GL={os.environ.get('MUJOCO_GL') or 'unset'}")


def compiler() -> None:
    """Compile a function and its gradient."""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    import torch

    x = torch.linspace(0.0, 1.0, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(torch.compile(lambda x: x.sin().square().sum())(x), x)
    torch.testing.assert_close(gradient, (2 * x.sin() * x.cos()).detach())
    print("compiled a function and its gradient")


def onnx_runtime() -> None:
    """Run a graph of one node."""
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "probe", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"x": np.array([1, -2], dtype=np.float32)})
    assert result.tolist() == [-1, 2]
    print(f"ran a graph; available: {', '.join(onnxruntime.get_available_providers())}")
