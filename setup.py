"""Packages, commands and extras; the pinned set that is tested together is in requirements.txt."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithConfigs(build_py):
    """Copies the experiment files into a wheel; a checkout and `pip install -e` read them where they are."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "pi_incubator" / "configs"
            shutil.copytree(ROOT / "configs", target, dirs_exist_ok=True)


setup(
    name="pi_incubator",
    version="0.2.0",
    description="Reinforcement learning for robots: simulator in the loop, from simulator to robot",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    cmdclass={"build_py": BuildWithConfigs},
    packages=find_packages(include=["pi_incubator*", "kernels*", "envs_gpu*", "bench*"]),
    package_data={"pi_incubator": ["py.typed", "deploy/templates/*"], "envs_gpu": ["assets/*.xml"]},
    install_requires=[
        "torch>=2.11,<2.14",
        "torchrl==0.14.1",
        "tensordict>=0.14.3,<0.15",  # 0.15 breaks torchrl 0.14
        "triton>=3.6; platform_system == 'Linux'",
        "mujoco==3.17.0",
        "mujoco-warp==3.17.0",
        "warp-lang==1.18.0",
        "mujoco-menagerie==2026.10.4",  # its real robots
        "gymnasium[mujoco]>=1.2,<2",  # its MuJoCo models
        "pydantic>=2.14,<3",
        "ruamel.yaml>=0.19,<0.20",  # YAML 1.2: 1e-3 is a number, a duplicate key an error
        "safetensors>=0.7",
        "rich>=14",
        "mlflow>=3.17,<3.18",
        "matplotlib>=3.10",
        "imageio-ffmpeg>=0.6",
        "scipy>=1.15",  # intervals over seeds; MLflow needs it too
        "onnx>=1.23,<2",
        "onnxscript>=0.7.2,<0.8",
        "onnxruntime>=1.32,<2",
        "psutil>=7",
    ],
    extras_require={
        "mjx": ["mujoco-mjx==3.17.0", "jax>=0.10.2"],
        "cuda": ["mujoco-mjx==3.17.0", "jax[cuda13]>=0.10.2"],
        "newton": ["newton==1.8.0"],
        "zoo": ["brax==0.14.2", "playground==0.2.0", "mujoco-mjx==3.17.0", "jax>=0.10.2"],
        "data": ["h5py==3.16.0", "pyarrow==25.0.1"],  # datasets of Minari (HDF5) and LeRobot (Parquet)
        "launch": ["ray[default]==2.60.0"],
        "store": ["lancedb==0.40.0", "pyarrow==25.0.1"],  # trajectories of many runs, searched by similarity
        "peers": [  # what pi-bench compares with
            "stable-baselines3==2.9.2",
            "sbx-rl==0.28.0",  # its PPO with the update in JAX
            "tfp-nightly==0.26.0.dev20261027",  # sbx's, which has no release that JAX 0.10 takes
            "envpool==1.2.5",  # Gymnasium's tasks in a C++ thread pool
        ],
        "test": [
            "pytest>=9",
            "pytest-xdist==3.8.0",  # `make test` runs two workers
            "pytest-timeout>=2.4",  # a hang is a failure, not a stuck run
            "hypothesis>=6.150",
            "coverage==7.13.0",  # `make mutants` asks which test runs which line
            "ruff==0.17.6",
            "mypy==2.4.1",
            "minari[hdf5]==0.5.4",  # reads what pi-data export writes
            "dm_control==1.0.50",  # the cartpole that ours is checked against
            "types-psutil",
        ],
    },
    entry_points={
        "console_scripts": [
            "pi-train=pi_incubator.cli.train:cli",
            "pi-eval=pi_incubator.cli.eval:cli",
            "pi-export=pi_incubator.cli.export:cli",
            "pi-runtime=pi_incubator.cli.runtime:cli",
            "pi-distill=pi_incubator.cli.distill:cli",
            "pi-bench=bench.cli:cli",
            "pi-data=pi_incubator.cli.data:cli",
            "pi-store=pi_incubator.cli.store:cli",
            "pi-envs=pi_incubator.cli.envs:cli",
            "pi-doctor=pi_incubator.cli.doctor:cli",
        ]
    },
)
