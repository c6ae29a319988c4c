"""Imports point down only: which layer may import which, read from the source with `ast`."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the top layer to the bottom one. A module may import from its own line and from any line below.
LAYERS = [
    ["bench"],
    ["train_ppo"],
    ["pi_incubator.cli"],
    ["pi_incubator.launch"],
    ["pi_incubator"],  # `pi_incubator.run`, for notebooks
    ["pi_incubator.run"],
    ["pi_incubator.loop"],
    ["pi_incubator.finish"],
    ["pi_incubator.autosize"],
    ["pi_incubator.memory"],
    ["pi_incubator.hooks"],
    ["pi_incubator.deploy"],
    ["pi_incubator.runtime"],
    ["pi_incubator.algorithms.distillation"],
    ["pi_incubator.distillation"],
    ["pi_incubator.algorithms"],
    ["pi_incubator.training"],
    ["pi_incubator.world_models"],
    ["pi_incubator.data"],
    ["pi_incubator.policies"],
    ["pi_incubator.networks"],
    ["pi_incubator.layers"],
    ["pi_incubator.evaluation"],
    ["pi_incubator.envs"],
    ["pi_incubator.compute"],
    ["pi_incubator.tracking"],
    ["pi_incubator.start_from"],
    ["pi_incubator.checkpoint"],
    ["pi_incubator.interruption"],
    ["pi_incubator.distributed"],
    ["pi_incubator.run_folder"],
    ["pi_incubator.inputs", "pi_incubator.previous", "pi_incubator.scene"],
    ["pi_incubator.data.datasets.source"],
    ["pi_incubator.data.store"],
    ["pi_incubator.data.datasets.lerobot"],
    ["pi_incubator.data.datasets.layout"],
    ["pi_incubator.checkpoint_files"],
    ["pi_incubator.run_paths", "pi_incubator.provenance"],
    ["pi_incubator.config"],
    ["pi_incubator.registry"],
    ["pi_incubator.faults"],
    ["pi_incubator.launcher"],
    ["pi_incubator.saved_state"],
    ["pi_incubator.errors", "pi_incubator.version"],
    ["pi_incubator.masking"],
    ["envs_gpu"],
    ["kernels"],
]
# Packages that only one of our packages may import.
ONLY_IN = {
    "jax": "envs_gpu",
    "jaxlib": "envs_gpu",
    "mujoco": "envs_gpu",
    "mujoco_warp": "envs_gpu",
    "newton": "envs_gpu",
    "brax": "envs_gpu",
    "mujoco_playground": "envs_gpu",
    "isaaclab": "envs_gpu",
    "ray": "pi_incubator.launch",
    "lancedb": "pi_incubator.data.store",
}
ALSO_ALLOWED = {"warp": ("envs_gpu", "kernels"), "triton": ("kernels",)}
MAY_IMPORT_EVERYTHING = "bench"


def modules():
    folders = ("bench", "pi_incubator", "envs_gpu", "kernels")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted([*files, *ROOT.glob("*.py")])


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path):
    """Names that a file imports, wherever in it; relative imports are resolved."""
    module = name_of(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return imports_of_text(path.read_text(encoding="utf-8"), package)


def imports_of_text(text, package):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base]).strip(".")
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def is_in(name, package):
    return name == package or name.startswith(f"{package}.")


def layer_of(name):
    """Index of the layer whose most specific package holds `name`, or None for other people's packages."""
    found = [
        (len(package), index)
        for index, layer in enumerate(LAYERS)
        for package in layer
        if is_in(name, package)
    ]
    return max(found)[1] if found else None


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_point_down(path):
    name = name_of(path)
    here = layer_of(name)
    if name == "setup":
        return
    assert here is not None, f"{name} has no layer: add it to LAYERS"
    assert name == "pi_incubator" or here != layer_of("pi_incubator"), (
        f"{name} has no layer: add it to LAYERS"
    )
    for imported, line in imports_of(path):
        there = layer_of(imported)
        assert there is None or there >= here, (
            f"{path.relative_to(ROOT)}:{line} imports {imported} from above"
        )


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_simulators_stay_in_their_package(path):
    name = name_of(path)
    if is_in(name, MAY_IMPORT_EVERYTHING):
        return
    for imported, line in imports_of(path):
        package = imported.split(".")[0]
        owners = ALSO_ALLOWED.get(package) or ((ONLY_IN[package],) if package in ONLY_IN else None)
        if owners:
            assert any(is_in(name, owner) for owner in owners), (
                f"{path.relative_to(ROOT)}:{line} imports {imported}, which belongs to {' and '.join(owners)}"
            )


def test_kernels_import_nothing_of_ours():
    for path in (ROOT / "kernels").rglob("*.py"):
        for imported, line in imports_of(path):
            assert not imported.startswith(("envs_gpu", "pi_incubator", "bench")), (
                f"{path}:{line} imports {imported}"
            )


def test_an_import_that_points_up_is_found(tmp_path):
    source = tmp_path / "x.py"
    source.write_text("def f():\n    from pi_incubator.training import on_policy\n")
    ((imported, _),) = imports_of_text(source.read_text(), package="envs_gpu.tasks")
    assert layer_of(imported) < layer_of("envs_gpu.tasks.ant")
    ((relative, _),) = imports_of_text("from ..training import on_policy", package="pi_incubator.networks")
    assert relative == "pi_incubator.training.on_policy"
    assert layer_of(relative) < layer_of("pi_incubator.networks")
