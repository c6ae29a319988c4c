"""A robot's file reads what its folder, or a folder that the user trusts, has in it, and nothing else."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import time
from pathlib import Path

import mujoco
import numpy as np
import pytest

from envs_gpu.errors import ModelError
from envs_gpu.models import compile_model, load_model, model_files
from envs_gpu.robots import ROBOTS, files_of

TETRAHEDRON = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"
BIG = TETRAHEDRON.replace("1 0 0", "3 0 0")
BODY = '<worldbody><body><joint name="j"/><geom type="mesh" mesh="shape"/></body></worldbody>'
MOTOR = '<actuator><motor joint="j" ctrlrange="-1 1"/></actuator>'
ROBOT = f'<mujoco><asset><mesh file="shape.obj"/></asset>{BODY}{MOTOR}</mujoco>'


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


class Opened:
    """Which files of a folder any code of this process opens, as Linux tells it (inotify)."""

    def __init__(self, folder: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK)
        assert libc.inotify_add_watch(self._descriptor, os.fsencode(folder), 0x20) > 0  # IN_OPEN

    def names(self) -> set[str]:
        try:
            data, found = os.read(self._descriptor, 65536), set()
        except BlockingIOError:
            return set()
        while data:
            size = struct.unpack("iIII", data[:16])[3]
            found.add(data[16 : 16 + size].rstrip(b"\0").decode())
            data = data[16 + size :]
        return found


SECRET = '<asset><mesh name="shape" file="{file}"/></asset>'
TRICKS = {
    # What one parser takes for a comment, a declaration or text, and another one for elements.
    "doctype": f"<!DOCTYPE mujoco [ <!-- > <mujoco>{SECRET}{BODY}</mujoco> --> ]>\n",
    "cdata": f"<![CDATA[ > <mujoco>{SECRET}{BODY}</mujoco> ]]>\n",
    "instruction": f"<?x ?> <mujoco>{SECRET}{BODY}</mujoco> ?>\n",
    "comment": f'<!-- " --> <mujoco>{SECRET}{BODY}</mujoco><!-- " -->\n',
    "unclosed": f"<!-- --!> <mujoco>{SECRET}{BODY}</mujoco> -->\n",
    "attribute": f'<mujoco model="<!--">{SECRET}{BODY}</mujoco><!--"-->\n',
    "utf-7": f'<?xml version="1.0" encoding="UTF-7"?>\n<mujoco>{SECRET}{BODY}</mujoco>\n',
    "entity": '<!DOCTYPE m [<!ENTITY f SYSTEM "{file}">]><mujoco>&f;</mujoco>\n',
    "plain": f"<mujoco>{SECRET}{BODY}</mujoco>\n",
}
HARMLESS = f'<mujoco><worldbody><body><joint name="j"/><geom size="1"/></body></worldbody>{MOTOR}</mujoco>'


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("follows", [True, False])
def test_no_trick_with_xml_makes_mujoco_open_a_file_outside(
    tmp_path: Path, trick: str, follows: bool
) -> None:
    """The operating system is asked what was opened: whatever the parsers think, it is nothing."""
    secret = write(tmp_path / "outside" / "secret.obj", TETRAHEDRON)
    opened = Opened(secret.parent)
    secret.read_text()
    assert opened.names() == {"secret.obj"}  # the watch works
    text = TRICKS[trick].replace("{file}", "../outside/secret.obj") + (HARMLESS if follows else "")
    path = write(tmp_path / "home" / "robot.xml", text)
    with contextlib.suppress(ModelError):
        assert compile_model(load_model(path), str(path)).nmesh == 0
    assert opened.names() == set()


def test_a_doctype_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "robot.xml", f"<!-- a\n-->\n<!DOCTYPE mujoco>\n{HARMLESS}")
    with pytest.raises(ModelError, match=r"robot\.xml, line 3: has a DOCTYPE; remove it"):
        load_model(path)


def test_comments_that_mujoco_takes_are_taken(tmp_path: Path) -> None:
    """XML forbids `--` in a comment, which many robots have; the line of an error stays right."""
    path = write(tmp_path / "robot.xml", f"<!-- a -- b\n--- -->\n{HARMLESS}")
    assert compile_model(load_model(path), str(path)).nu == 1
    path.write_text(f"<!-- a -- b\n--- -->\n{HARMLESS.replace('size', 'seize')}")
    with pytest.raises(ModelError, match=r"line 3, <geom>: Schema violation: .*'seize'"):
        load_model(path)


LAYOUTS = {
    "include beside the include": (
        {"parts/a.xml": '<x><include file="b.xml"/></x>', "parts/b.xml": "ASSET"},
        "",
    ),
    "include beside the model": ({"parts/a.xml": '<x><include file="b.xml"/></x>', "b.xml": "ASSET"}, ""),
    "mesh beside the model first": ({"parts/a.xml": "ASSET", "parts/shape.obj": BIG}, ""),
    "mesh beside the include": ({"parts/a.xml": "ASSET", "parts/shape.obj": BIG}, "alone"),
    "meshdir of the model": ({"parts/a.xml": "ASSET", "x/shape.obj": BIG}, '<compiler meshdir="x"/>'),
    "meshdir of the include": ({"parts/a.xml": 'ASSET<compiler meshdir="x"/>', "x/shape.obj": BIG}, ""),
    "the last meshdir": (
        {"parts/a.xml": 'ASSET<compiler assetdir="y"/>', "x/shape.obj": BIG, "y/shape.obj": TETRAHEDRON},
        '<compiler meshdir="x"/>',
    ),
    "meshdir before assetdir": (
        {"parts/a.xml": "ASSET", "x/shape.obj": BIG, "y/shape.obj": TETRAHEDRON},
        '<compiler meshdir="x" assetdir="y"/>',
    ),
    "strippath": ({"parts/a.xml": "ASSET"}, '<compiler strippath="true"/>'),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_are_found_where_mujoco_finds_them(tmp_path: Path, layout: str) -> None:
    """The same mesh as MuJoCo's own reading of the same file takes, where several could be meant."""
    files, head = LAYOUTS[layout]
    if head != "alone":
        write(tmp_path / "shape.obj", TETRAHEDRON)
    name = "far/shape.obj" if layout == "strippath" else "shape.obj"
    asset = f'<asset><mesh file="{name}"/></asset>'
    for file, text in files.items():
        is_xml = file.endswith(".xml")
        content = text.replace("ASSET", asset)
        write(tmp_path / file, f"<mujoco>{content}</mujoco>" if is_xml and content[:2] != "<x" else content)
    head = "" if head == "alone" else head
    text = f'<mujoco><include file="parts/a.xml"/>{head}{BODY}{MOTOR}</mujoco>'
    path = write(tmp_path / "robot.xml", text)
    theirs = mujoco.MjModel.from_xml_path(str(path))
    ours = compile_model(load_model(path), str(path))
    np.testing.assert_array_equal(ours.mesh_vert, theirs.mesh_vert)
    assert ours.mesh(0).name == theirs.mesh(0).name == "shape"


def test_real_robots_are_what_mujoco_reads() -> None:
    """Menagerie's Go1, with textures, includes, defaults and meshes: every number is the same."""
    folder = files_of(ROBOTS["go1"])
    assert folder is not None
    path = folder / "scene.xml"
    theirs = mujoco.MjModel.from_xml_path(str(path))
    ours = compile_model(load_model(path), str(path))
    for name in dir(theirs):
        value = getattr(theirs, name)
        if isinstance(value, np.ndarray) and not name.endswith("pathadr"):
            np.testing.assert_array_equal(getattr(ours, name), value, err_msg=name)


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """The usual layout: `robot/robot.xml` reads `../assets/shape.obj`."""
    write(tmp_path / "assets" / "shape.obj", TETRAHEDRON)
    return write(tmp_path / "robot" / "robot.xml", ROBOT.replace("shape.obj", "../assets/shape.obj"))


def test_a_refusal_names_the_folder_that_would_do(beside: Path) -> None:
    root = beside.parents[1]
    with pytest.raises(ModelError, match=f"or trust a wider one: env.model_root={root}$"):
        load_model(beside)
    assert compile_model(load_model(beside, root=root), str(beside)).nmesh == 1
    assert model_files(beside, root) == {
        ".": beside,
        "../assets/shape.obj": beside.parent / "../assets/shape.obj",
    }


def test_the_whole_machine_is_never_proposed(tmp_path: Path) -> None:
    path = write(tmp_path / "robot.xml", ROBOT.replace("shape.obj", "/etc/hostname"))
    with pytest.raises(ModelError, match=r"copy what it names into that folder$"):
        load_model(path)


def test_a_trusted_folder_has_the_model_in_it(beside: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(ModelError, match=r"is not in env\.model_root=.*elsewhere; name a folder"):
        load_model(beside, root=tmp_path / "elsewhere")


def test_a_child_may_read_beside_itself_within_the_models_folder(tmp_path: Path) -> None:
    """A `<model>` looks for its files from its own folder, as in MuJoCo; what leads out is refused."""
    child = write(
        tmp_path / "parts" / "arm" / "arm.xml",
        '<mujoco>\n<compiler meshdir="../meshes"/><asset><mesh file="shape.obj"/></asset>'
        '<worldbody><body name="link"><joint name="j"/><geom type="mesh" mesh="shape"/></body></worldbody>'
        "</mujoco>",
    )
    write(tmp_path / "parts" / "meshes" / "shape.obj", TETRAHEDRON)
    path = write(
        tmp_path / "robot.xml",
        '<mujoco><asset><model name="arm" file="parts/arm/arm.xml"/></asset><worldbody><frame>'
        '<attach model="arm" body="link" prefix="a_"/></frame></worldbody>'
        '<actuator><motor joint="a_j" ctrlrange="-1 1"/></actuator></mujoco>',
    )
    theirs, ours = mujoco.MjModel.from_xml_path(str(path)), compile_model(load_model(path), str(path))
    np.testing.assert_array_equal(ours.mesh_vert, theirs.mesh_vert)
    assert set(model_files(path)) == {".", "parts/arm/arm.xml", "parts/meshes/shape.obj"}
    child.write_text(child.read_text().replace("../meshes", "../../../meshes"))
    with pytest.raises(
        ModelError, match=r"arm\.xml, line 2, <compiler> meshdir=.*: leads out of the model's"
    ):
        load_model(path)
    child.write_text(child.read_text().replace("../../../meshes", "../meshes").replace("<joint", "<joynt"))
    with pytest.raises(ModelError, match=r"arm\.xml, line 2, <joynt name=\"j\">: "):
        load_model(path)


def test_includes_in_a_circle_are_one_line(tmp_path: Path) -> None:
    write(tmp_path / "a.xml", '<mujoco><include file="b.xml"/></mujoco>')
    write(tmp_path / "b.xml", '<mujoco><include file="a.xml"/></mujoco>')
    path = write(tmp_path / "robot.xml", '<mujoco><include file="a.xml"/></mujoco>')
    with pytest.raises(ModelError, match=r'b\.xml, line 1, <include> file="a\.xml": is already included'):
        load_model(path)


def test_a_model_that_is_a_part_of_itself_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "robot.xml", '<mujoco><asset><model name="m" file="robot.xml"/></asset></mujoco>')
    with pytest.raises(ModelError, match=r'line 1, <model name="m">: .*robot\.xml is a part of itself'):
        load_model(path)


def test_an_absolute_path_is_no_part_of_a_run(tmp_path: Path) -> None:
    """A run copies its robot; the copy would read the original."""
    shape = write(tmp_path / "shape.obj", TETRAHEDRON)
    path = write(tmp_path / "robot.xml", ROBOT.replace("shape.obj", str(shape)))
    assert compile_model(load_model(path), str(path)).nmesh == 1
    with pytest.raises(ModelError, match=r'<mesh> file=".*shape\.obj": is an absolute path'):
        model_files(path)


@pytest.mark.parametrize("part", ["<", '<"', "<!--", "<a>", "<'\"", "<a b='", "-->", "<![CDATA["])
def test_hostile_text_takes_no_time(tmp_path: Path, part: str) -> None:
    """Reading takes time in proportion to the size, not to its square."""
    path = write(tmp_path / "robot.xml", part * 100_000)
    start_s = time.process_time()
    with pytest.raises(ModelError):
        load_model(path)
    assert time.process_time() - start_s < 2.0
