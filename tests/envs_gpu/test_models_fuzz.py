"""Whatever an MJCF file says, the answer is a model or a `ModelError` of one line: nothing else escapes."""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import quoteattr

import mujoco
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs_gpu.errors import ModelError
from envs_gpu.models import compile_model, load_model

QUICK = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
GOOD = """<mujoco model="arm">
  <option timestep="0.002" integrator="implicitfast"/>
  <default><geom friction="1 0.01 0.001"/><default class="small"><geom size="0.02"/></default></default>
  <asset>
    <mesh name="wedge" vertex="0 0 0  1 0 0  0 1 0  0 0 1"/>
    <material name="red" rgba="1 0 0 1"/>
  </asset>
  <worldbody>
    <geom name="floor" type="plane" size="2 2 0.1"/>
    <body name="link" pos="0 0 1">
      <joint name="hinge" axis="0 1 0" range="-1 1" damping="0.1"/>
      <geom name="rod" type="capsule" fromto="0 0 0 0 0 0.5" size="0.05" material="red"/>
      <body name="hand" pos="0 0 0.5">
        <joint name="slide" type="slide" axis="1 0 0" range="0 0.1"/>
        <geom class="small"/>
        <site name="tip"/>
      </body>
    </body>
  </worldbody>
  <equality><joint joint1="hinge" joint2="slide"/></equality>
  <actuator>
    <motor name="pull" joint="hinge" ctrlrange="-1 1"/>
    <position name="push" joint="slide" kp="10" ctrlrange="0 0.1"/>
  </actuator>
  <sensor><framepos name="where" objtype="site" objname="tip"/></sensor>
  <keyframe><key name="home" qpos="0 0"/></keyframe>
</mujoco>
"""
VALUES = st.sampled_from(
    [
        *("0", "1", "-1", "0.1", "1e-9", "1e9", "1e400", "-1e308", "inf", "-inf", "nan", "0 0 0", "1 2"),
        *("0 0 0 0", "1 0 0 0", "0 1 0", "-1 1", "1 -1", "inf inf", "", " ", "true", "false", "auto"),
        *("hinge", "slide", "free", "ball", "sphere", "box", "mesh", "plane", "hfield", "none", "hull"),
        *("link", "hand", "rod", "floor", "tip", "wedge", "red", "small", "pull", "where", "home", "world"),
        *("2147483648", "-2147483649", "0x10", "1,2", "1e", "ü", "é" * 50, "a\tb", "../x", "/etc/hostname"),
        *("RK4", "Euler", "elliptic", "Newton", "class", "main", "%s%n", "x" * 2000),
    ]
)
TEXTS = VALUES | st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=12)
TAGS = st.sampled_from(
    [
        *("body", "joint", "geom", "site", "freejoint", "inertial", "frame", "light", "camera", "motor"),
        *("position", "velocity", "general", "muscle", "cylinder", "adhesion", "damper", "intvelocity"),
        *("framepos", "gyro", "jointpos", "touch", "rangefinder", "user", "contact", "exclude", "pair"),
        *("connect", "weld", "tendon", "fixed", "spatial", "default", "option", "flag", "compiler", "size"),
        *("mesh", "hfield", "texture", "material", "key", "numeric", "text", "tuple", "worldbody", "asset"),
        *("actuator", "sensor", "equality", "keyframe", "custom", "visual", "statistic", "include", "xyz"),
        *("attach", "model", "flexcomp", "composite", "skin", "deformable", "extension", "plugin", "mujoco"),
    ]
)
ATTRIBUTES = st.sampled_from(
    [
        *(
            "name",
            "class",
            "childclass",
            "type",
            "pos",
            "quat",
            "euler",
            "axisangle",
            "size",
            "mass",
            "density",
        ),
        *(
            "fromto",
            "mesh",
            "file",
            "material",
            "joint",
            "joint1",
            "joint2",
            "body",
            "body1",
            "body2",
            "site",
        ),
        *("geom", "geom1", "geom2", "axis", "range", "limited", "damping", "stiffness", "armature", "ref"),
        *("ctrlrange", "ctrllimited", "forcerange", "gear", "kp", "kv", "dyntype", "gaintype", "biastype"),
        *("gainprm", "biasprm", "dynprm", "actdim", "objtype", "objname", "reftype", "refname", "cutoff"),
        *("timestep", "integrator", "cone", "solver", "iterations", "gravity", "angle", "autolimits"),
        *("diaginertia", "fullinertia", "qpos", "qvel", "ctrl", "time", "vertex", "face", "scale", "rgba"),
        *("condim", "friction", "solref", "solimp", "margin", "gap", "group", "priority", "user", "data"),
        *("njmax", "nuser_geom", "nstack", "meshdir", "coordinate", "balanceinertia", "inertiafromgeom"),
    ]
)
"""Without sizes that ask for gigabytes, which `greedy` has."""


SIZES = st.sampled_from(
    ["0", "-1", "3", "1000", "1000001", "2000000000", "1e9", "3 4 5", "70000 70000 1", "x"]
)
GREEDY = ("nuser_geom", "nuser_sensor", "nkey", "nuserdata", "njmax", "nconmax")
GRIDS = ("nrow", "ncol", "width", "height")


@st.composite
def greedy(draw: st.DrawFn) -> str:
    """The good file with numbers in it that may ask for more than any machine has."""
    size, count, other = draw(st.sampled_from(GREEDY)), draw(SIZES), draw(SIZES)
    tag = draw(st.sampled_from(["replicate", "composite", "flexcomp", "size", "hfield", "texture"]))
    ball = '<body><freejoint/><geom size="0.1"/></body>'
    match tag:
        case "size":
            return GOOD.replace("<worldbody>", f'<size {size}="{count}"/><worldbody>')
        case "hfield" | "texture":
            across, down = draw(st.sampled_from([GRIDS[:2], GRIDS[2:]]))
            kind = 'size="1 1 1 1"' if tag == "hfield" else 'type="2d" builtin="flat"'
            grid = f'<{tag} name="grid" {kind} {across}="{count}" {down}="{other}"/>'
            return GOOD.replace("<asset>", f"<asset>{grid}")
        case "replicate":
            inside = draw(st.sampled_from([ball, f'<replicate count="{other}">{ball}</replicate>']))
        case _:
            inside = "<geom/>"
    counted = f'<{tag} count="{count}">{inside}</{tag}>'
    return GOOD.replace("<worldbody>", f"<worldbody>{counted}")


@st.composite
def elements(draw: st.DrawFn, depth: int = 2) -> str:
    """An element of MJCF's words, in any order and with any values."""
    tag = draw(TAGS)
    attributes = draw(st.dictionaries(ATTRIBUTES, TEXTS, max_size=4))
    inside = "".join(draw(st.lists(elements(depth - 1), max_size=3))) if depth else ""
    written = "".join(f" {name}={quoteattr(value)}" for name, value in attributes.items())
    return f"<{tag}{written}>{inside}</{tag}>"


@st.composite
def with_fragments(draw: st.DrawFn) -> str:
    """The good file with elements put in behind some of its tags."""
    text = GOOD
    for _ in range(draw(st.integers(1, 3))):
        ends = [index + 1 for index, letter in enumerate(text) if letter == ">" and index < len(text) - 2]
        at = draw(st.sampled_from(ends))
        text = text[:at] + draw(elements()) + text[at:]
    return text


@st.composite
def with_other_values(draw: st.DrawFn) -> str:
    """The good file in which some attributes have another value or another name."""
    pieces = GOOD.split('"')  # every second piece is a value
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(pieces) // 2 - 1)) * 2
        if draw(st.booleans()):
            pieces[at + 1] = quoteattr(draw(TEXTS))[1:-1].replace('"', "")
        else:
            head, _, _ = pieces[at].rpartition(" ")
            pieces[at] = f"{head} {draw(ATTRIBUTES)}="
    return '"'.join(pieces)


@st.composite
def with_other_bytes(draw: st.DrawFn) -> bytes:
    """The good file with bytes changed, left out, repeated or cut off, or as it is."""
    data = bytearray(GOOD.encode())
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        kind = draw(
            st.sampled_from(["flip", "leave out", "repeat", "add", "cut"]) if data else st.just("add")
        )
        if kind == "flip":
            data[at] = draw(st.integers(0, 255))
        elif kind == "leave out":
            del data[at : at + draw(st.integers(1, 30))]
        elif kind == "repeat":
            data[at:at] = data[at : at + draw(st.integers(1, 200))]
        elif kind == "add":
            data[at:at] = draw(st.binary(min_size=1, max_size=6))
        else:
            data = data[: at + 1]
    return bytes(data)


def read(path: Path, content: str | bytes) -> mujoco.MjModel | None:
    """The compiled model, or None where there is an error, which is one line that names the file."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    try:
        return compile_model(load_model(path), str(path))
    except ModelError as error:
        report = str(error)
    assert len(report.splitlines()) == 1
    assert str(path) in report
    assert len(report) < 6000
    return None


def check(path: Path, content: str | bytes) -> bool:
    """Whether the model is taken; then an agent can act in it."""
    model = read(path, content)
    if model is None:
        return False
    assert model.nu > 0
    assert np.isfinite(model.actuator_ctrlrange).all()
    assert np.isfinite(model.body_mass).all()
    return True


def test_the_good_file_is_taken(tmp_path: Path) -> None:
    """So that what follows can fail for the changes alone."""
    assert check(tmp_path / "a.xml", GOOD)


@pytest.mark.parametrize("kind", [with_fragments, with_other_values, with_other_bytes, greedy])
def test_a_changed_file_is_taken_or_refused_in_one_line(tmp_path: Path, kind) -> None:
    """Elements where none belong, values that do not fit, bytes that are no XML; some are harmless."""
    taken = []

    @QUICK
    @given(kind())
    def fuzz(content: str | bytes) -> None:
        taken.append(check(tmp_path / "a.xml", content))

    fuzz()
    assert 0.0 < np.mean(taken) < 0.9


@QUICK
@given(
    st.binary(max_size=200)
    | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))
    | elements().map(lambda text: f"<mujoco>{text}</mujoco>".encode())
)
def test_what_is_no_model(tmp_path: Path, content: bytes) -> None:
    """Anything at all; nothing of it has an actuator in a body."""
    assert not check(tmp_path / "a.xml", content)


@pytest.mark.parametrize(
    ("at", "element", "expected"),
    [
        ("worldbody", '<size nuser_geom="2000000000"/>', 'nuser_geom="2000000000": more than 1,000,000'),
        ("worldbody", '<size nkey="2000000000"/>', 'nkey="2000000000": more than 10,000'),
        ("body", '<replicate count="3000000"><geom size="1"/></replicate>', 'count="3000000": makes more'),
        (
            "body",
            '<replicate count="999"><replicate count="999"><geom size="1"/></replicate></replicate>',
            'count="999": makes more than 30,000 elements',
        ),
        ("body", '<composite type="cable" count="3000000 1 1"/>', 'count="3000000 1 1": makes more'),
        ("body", '<flexcomp name="f" count="2000 2000 1"/>', 'count="2000 2000 1": makes more'),
        ("material", '<hfield name="h" nrow="60000" ncol="60000"/>', 'ncol="60000": more than'),
        ("material", '<texture name="t" width="60000" height="60000"/>', 'height="60000": more than'),
    ],
)
def test_what_asks_for_too_much_is_refused_before_mujoco_sees_it(
    tmp_path: Path, at: str, element: str, expected: str
) -> None:
    """MuJoCo would take all memory, or run for hours; the line names file, line, element and limit."""
    path = tmp_path / "a.xml"
    path.write_text(GOOD.replace(f"<{at}", f"{element}<{at}", 1))
    with pytest.raises(ModelError) as caught:
        load_model(path)
    assert expected in str(caught.value)
    assert f"{path}, line " in str(caught.value)


def test_a_replicate_of_an_attached_model_counts_what_is_in_it(tmp_path: Path) -> None:
    """300 times a model of 200 geoms is 60,000 geoms, which is refused; three times is not."""
    geoms = '<geom size="1"/>' * 200
    (tmp_path / "many.xml").write_text(
        f'<mujoco><worldbody><body name="top">{geoms}</body></worldbody></mujoco>'
    )
    attach = '<replicate count="%d"><frame><attach model="many" body="top" prefix="x"/></frame></replicate>'
    path = tmp_path / "a.xml"
    with_model = GOOD.replace("<asset>", '<asset><model name="many" file="many.xml"/>')
    path.write_text(with_model.replace("<worldbody>", f"<worldbody>{attach % 3}"))
    assert load_model(path).compile().ngeom == 3 + 3 * 200
    path.write_text(with_model.replace("<worldbody>", f"<worldbody>{attach % 300}"))
    with pytest.raises(ModelError, match=r'count="300": makes more than'):
        load_model(path)


@pytest.mark.parametrize("error", [RuntimeError("Caught an unknown exception!"), MemoryError()])
def test_mujoco_out_of_memory_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """MuJoCo tells it as a RuntimeError without a reason."""

    def fails(*_: object, **__: object) -> None:
        raise error

    path = tmp_path / "a.xml"
    path.write_text(GOOD)
    monkeypatch.setattr(mujoco.MjSpec, "from_string", fails)
    with pytest.raises(ModelError, match=r"a\.xml: MuJoCo cannot compile it and does not say why"):
        load_model(path)
