"""Pictures and the page show what a result holds, and nothing that it holds can break them."""

from __future__ import annotations

import argparse
import base64
import importlib
import io
import json
import shlex
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from bench import memory
from bench._gpu_figures import Figure, figures, found
from bench._page import page
from bench._plot import _panels, draw, plot
from bench._result import make_curve, make_metric, make_result
from pi_incubator.config import load_with_sources
from pi_incubator.errors import UserError

ROOT = Path(__file__).parents[2]
Result = dict[str, Any]
HOSTILE = "<script>alert(\"1\")</script> & 'x' \x00 \ud800 $\\frac{"


def words(element: ElementTree.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def opened(page_text: str) -> ElementTree.Element:
    """The page, whose markup is well-formed XML."""
    return ElementTree.fromstring(page_text.removeprefix("<!DOCTYPE html>"))


def with_curve(result: Result) -> Result:
    line = make_curve("iteration", "MB", {"resident": ([0, 1, 2], [5.0, 6.0, 5.5])})
    return result | {"curves": {"Memory": line}}


def test_a_picture_grows_with_what_it_shows(tmp_path: Path, result: Result) -> None:
    file = plot(result, tmp_path)
    assert file == tmp_path / "sim.png"
    one = Image.open(file)
    two = Image.open(plot(with_curve(result), tmp_path / "two.png"))
    assert one.width == two.width
    assert two.height > one.height
    corner = Image.open(io.BytesIO(draw(result) or b"")).convert("L").getpixel((2, 2))
    assert corner == 255  # white paper


def test_metrics_of_one_unit_share_a_panel(result: Result) -> None:
    panels = _panels(result["metrics"])
    assert list(panels) == ["env steps/s", "s"]
    assert list(panels["env steps/s"]["ant"]) == ["env", "rollout"]
    alike = {f"{task}: share": make_metric([50.0], "%", "") for task in ("ant", "hopper")}
    assert {label: list(groups[""]) for label, groups in _panels(alike).items()} == {
        "share, %": ["ant", "hopper"]
    }


@pytest.mark.parametrize("values", [[0.0], [-3.0, 2.0], [1e-9, 1e9], [5.0] * 3])
def test_any_numbers_can_be_drawn(values: list[float]) -> None:
    metrics = {f"g: {index}": make_metric([value], "x") for index, value in enumerate(values)}
    assert draw(make_result("sim", {}, metrics))


def test_nothing_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing was measured"):
        plot(make_result("sim", {}, {}), tmp_path / "none.png")


def test_the_page_is_whole_and_needs_nothing_else(result: Result) -> None:
    text = page([("sim.json", with_curve(result)), ("again.json", result)])
    root = opened(text)
    assert "http" not in text
    assert not root.findall(".//script")
    assert not root.findall(".//link")
    pictures = [one.get("src") or one.get("srcset") for one in root.iter() if one.tag in ("img", "source")]
    assert len(pictures) == 2 * 2  # of two results, light and dark
    for uri in pictures:
        head, _, data = str(uri).partition(",")
        assert head == "data:image/png;base64"
        Image.open(io.BytesIO(base64.b64decode(data, validate=True))).load()
    targets = {one.get("id") for one in root.iter("section")}
    links = [str(one.get("href")) for one in root.iter("a")]
    assert len(links) == 2
    assert {link.removeprefix("#") for link in links} <= targets


def test_the_page_says_what_the_files_say(result: Result) -> None:
    text = words(opened(page([("sim.json", result | {"not_measured": {"hopper": "refused"}})])))
    for said in (
        *("ant: rollout", "1,200", "1,180", "1,230", "4.2\xa0%", "env steps/s", "hopper", "refused"),
        *(result["machine"]["cpu"], result["versions"]["torch"], result["command"], '"task": "ant"'),
    ):
        assert " ".join(said.split()) in text


def test_nothing_in_a_file_becomes_markup(result: Result) -> None:
    hostile = make_result(
        HOSTILE,
        {HOSTILE: [HOSTILE]},
        {f"{HOSTILE}: {HOSTILE}": make_metric([1.0, 2.0], HOSTILE)},
        not_measured={HOSTILE: HOSTILE},
        curves={HOSTILE: make_curve(HOSTILE, HOSTILE, {HOSTILE: ([0], [1])})},
    )
    strings = ("command", "measured_at")
    hostile |= dict.fromkeys(strings, HOSTILE)
    hostile["machine"] = dict.fromkeys(hostile["machine"], HOSTILE) | {"gpus": [HOSTILE]}
    hostile["versions"] = {HOSTILE: HOSTILE}
    hostile["git"] = {"commit": HOSTILE, "dirty": HOSTILE}
    root = opened(page([(HOSTILE, hostile)]))
    assert not root.findall(".//script")
    assert "<script>alert(" in words(root)


def gpu_result() -> Result:
    metric = make_metric([12.0], "%", "")
    settings = {"devices": {"warp": "cuda"}, "num_envs": {"warp": 4096}}
    return make_result("sim", settings, {"ant on warp: not physics": metric})


def test_what_no_gpu_measured_is_shown_so(result: Result) -> None:
    asked: list[Figure] = list(figures())
    assert all(found(figure, [result]) is None for figure in asked)
    rows = [words(row) for row in opened(page([("a", result)])).find(".//section[@id='gpu']").iter("tr")]  # type: ignore[union-attr]
    assert len(rows) == 1 + len(asked)
    assert all("not measured" in row for row in rows[1:])


def test_what_a_gpu_is_asked_for_can_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands are of `pi-bench`, and their configs are some."""
    (tmp_path / "bench/results").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for figure in figures():
        _, bench, *rest = shlex.split(figure.command)
        parser = argparse.ArgumentParser()
        importlib.import_module(f"bench.{bench}").add_arguments(parser)
        arguments = parser.parse_args(rest)
        assert arguments.json.parent == Path("bench/results")
        if bench == "train":
            overrides = [text for text in rest if "=" in text]
            load_with_sources(str(ROOT / arguments.config), overrides)


def test_what_a_gpu_measured_is_shown() -> None:
    values = {figure.what: found(figure, [gpu_result()]) for figure in figures()}
    measured = {what: value for what, value in values.items() if value}
    assert measured == {"ant: env step over bare physics, 4,096 worlds": "88.0 %"}
    on_cpu = gpu_result() | {"settings": {"devices": {"warp": "cpu"}, "num_envs": {"warp": 4096}}}
    assert not any(found(figure, [on_cpu]) for figure in figures())


@pytest.mark.slow
def test_report_reads_files_and_folders(tmp_path: Path, run_bench: Any, result: Result) -> None:
    nothing = run_bench("report")
    assert nothing.returncode == 2
    assert nothing.stderr.count("\n") == 1
    assert "bench/results: no results there" in nothing.stderr
    folder = tmp_path / "bench" / "results"
    folder.mkdir(parents=True)
    for name in ("b", "a"):
        (folder / f"{name}.json").write_text(json.dumps(result))
    done = run_bench("report", "--out", "all.html")
    assert done.returncode == 0, done.stderr
    sections = [words(one) for one in opened((tmp_path / "all.html").read_text()).iter("section")]
    assert ["a.json" in sections[2], "b.json" in sections[3], len(sections)] == [True, True, 4]


def samples(mb: list[float], device_mb: float | None) -> list[memory.Sample]:
    device = None if device_mb is None else int(1e6 * device_mb)
    return [memory.Sample(10 * i, int(1e6 * size), int(1e6 * size), 1, device) for i, size in enumerate(mb)]


def test_growth_is_the_slope_after_warm_up() -> None:
    settled = [100.0 + 5.0 * i for i in range(20)]  # 100 MB in the first fifth
    leaking = settled + [200.0 + 0.02 * i for i in range(80)] + [900.0]  # and what follows training
    metrics, curves = memory.judge(samples(leaking, 50.0), num_iterations=1000)
    assert metrics["memory: growth"]["median"] == pytest.approx(2.0, abs=1e-3)  # 0.02 MB in ten iterations
    assert metrics["device memory: growth"]["median"] == pytest.approx(0.0, abs=1e-9)
    assert metrics["memory: peak"]["median"] == pytest.approx(0.9)
    drawn = curves["Memory while training"]["lines"]
    assert max(drawn["resident"]["y"]) < 300
    assert len(drawn) == 4  # two kinds of memory, each with its fit


def test_too_few_logs_show_no_growth() -> None:
    metrics, _ = memory.judge(samples([100.0] * 9, None), num_iterations=90)
    assert list(metrics) == ["memory: peak"]
