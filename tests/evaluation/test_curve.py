"""The learning curve is drawn from whatever was logged."""

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.testing.compare import compare_images
from PIL import Image

from pi_incubator.errors import UserError
from pi_incubator.evaluation.curve import DETAILS, draw_curve


def row(i, **metrics):
    return {"iteration": i, "env_steps": 4096 * (i + 1), "wall_s": 0.7 * (i + 1), **metrics}


def healthy(i):
    kl, lr = 0.01 + 0.001 * math.sin(i), 3e-4 * (1 - i / 80)
    metrics = {"episode/return": 10.0 * i, "episode/length": 1000 - i, "policy/kl": kl, "policy/lr": lr}
    return row(i, **metrics, env_steps_per_s=12e3)


@pytest.mark.parametrize(
    "rows",
    [
        [healthy(i) for i in range(80)],
        [healthy(0)],
        [row(i, **{"policy/kl": None, "policy/lr": 1e-3}) for i in range(3)],
        [row(0), *(healthy(i) for i in range(1, 5))],
    ],
    ids=["whole run", "one line", "no episode ended", "metrics that come later"],
)
def test_it_draws(rows, tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(r) + "\n" for r in rows))
    draw_curve(metrics, tmp_path / "curve.png", "a run")
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.format == "PNG"
        assert picture.width == 1500
        assert len(picture.convert("RGB").getcolors(2**24)) > 50  # something is on it


def test_the_picture_is_the_one_that_was_looked_at(tmp_path):
    """After a change of the layout, look at the new picture and store it as tests/evaluation/curve.png."""
    names = ("forward_velocity_m_s", "policy/entropy", "loss/value")
    rows = [healthy(i) | {name: 2e4 * math.cos(i / 9 + len(name)) for name in names} for i in range(200)]
    metrics, picture = tmp_path / "metrics.jsonl", tmp_path / "curve.png"
    metrics.write_text("".join(json.dumps(r) + "\n" for r in rows))
    draw_curve(metrics, picture, "a run")
    assert compare_images(str(Path(__file__).parent / "curve.png"), str(picture), tol=0.05) is None


def test_no_metrics_are_one_line(tmp_path):
    with pytest.raises(UserError, match="holds no metrics"):
        draw_curve(tmp_path / "metrics.jsonl", tmp_path / "curve.png")


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Rows -> the figure that is drawn of them, with what is on its axes; the main picture is the first."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, place: figures.append(figure))

    def draw(rows, title=""):
        metrics = tmp_path / "metrics.jsonl"
        metrics.write_text("".join(json.dumps(r) + "\n" for r in rows))
        draw_curve(metrics, tmp_path / "curve.png", title)
        return figures[-1]

    return draw


def points(line):
    return list(zip(*map(np.ndarray.tolist, line.get_data()), strict=True))


def test_every_value_is_drawn_and_the_mean_around_it(drawn):
    """What was logged, thin; above it the mean over a window of 8 % of the run around each point, cut off at
    the ends; at its end the last mean as a number."""
    random = np.random.default_rng(0)
    values = random.normal(size=100) * 1000
    rows = [row(i, **{"episode/return": float(value)}) for i, value in enumerate(values)]
    main = drawn(rows).axes[0]
    raw, smooth, last = main.lines
    assert points(raw) == [(4096 * (i + 1), value) for i, value in enumerate(values)]
    expected = [values[max(0, i - 4) : i + 5].mean() for i in range(100)]
    np.testing.assert_allclose(smooth.get_ydata(), expected, atol=1e-9)
    np.testing.assert_array_equal(smooth.get_xdata(), raw.get_xdata())
    assert points(last) == [(409600, pytest.approx(expected[-1]))]
    assert main.texts[0].get_text() == f"{expected[-1]:,.0f}"
    assert (main.get_xlabel(), main.get_ylabel()) == ("Environment steps", "Episode return")


@pytest.mark.parametrize(
    ("value", "text"), [(12345.6, "12,346"), (100.0, "100"), (99.994, "100"), (-1.2345, "-1.23")]
)
def test_the_last_return_is_a_number_that_one_can_read(drawn, value, text):
    main = drawn([row(0, **{"episode/return": value})]).axes[0]
    assert [text_.get_text() for text_ in main.texts] == [text]


def test_a_run_in_which_no_episode_ended_says_so(drawn):
    main = drawn([row(i, **{"policy/lr": 1e-3}) for i in range(3)]).axes[0]
    assert [text.get_text() for text in main.texts] == ["no episode has ended yet"]
    assert not main.lines


def test_small_pictures_show_what_was_logged_and_six_at_most(drawn):
    """Metrics that were never finite have none; each shows every value, in the order of `DETAILS`."""
    metrics = dict.fromkeys(reversed(DETAILS), 1.0) | {"episode/length": None, "unknown": 1.0}
    rows = [row(i, **(metrics | {"policy/kl": float(i) if i else None})) for i in range(4)]
    figure = drawn(rows, "a run")
    titles = [axes.get_title(loc="left") for axes in figure.axes[1:]]
    assert titles == [DETAILS[name] for name in DETAILS if name != "episode/length"][:6]
    kl = figure.axes[1 + titles.index(DETAILS["policy/kl"])]
    assert points(kl.lines[0]) == [(4096 * (i + 1), float(i)) for i in (1, 2, 3)]
    assert points(kl.lines[1]) == points(kl.lines[0])  # the mean: a window of so few values is one value
    assert figure.get_suptitle() == "a run"
    figure.draw_without_rendering()
    places = [axes.get_position() for axes in figure.axes]
    for one, other in pairwise(places):  # from above to below, from left to right
        assert other.y0 < one.y0 - 0.05 or (other.y0 == pytest.approx(one.y0, abs=0.05) and other.x0 > one.x1)


def test_without_other_metrics_the_return_has_the_picture_alone(drawn):
    figure = drawn([row(i, **{"episode/return": 1.0}) for i in range(3)])
    assert len(figure.axes) == 1
    assert figure.get_suptitle() == ""


@pytest.mark.parametrize(
    ("seconds", "unit", "one"),
    [(10.0, "s", 4), (119.0, "s", None), (120.0, "min", 1), (7199.0, "min", None), (36_000.0, "h", 4)],
)
def test_the_axis_above_says_when(drawn, seconds, unit, one):
    """In a unit of which there are at least two, at round numbers; here steps are equally long."""
    rows = [row(i, **{"episode/return": 1.0}) | {"wall_s": seconds * i / 100} for i in range(101)]
    above = drawn(rows).axes[0].child_axes[0]
    assert above.get_xlabel() == f"Wall time ({unit})"
    times = [float(label.get_text()) for label in above.get_xticklabels()]
    size = {"s": 1, "min": 60, "h": 3600}[unit]
    assert len(times) >= 2
    assert 0 <= min(times) <= max(times) <= seconds / size
    for place, time in zip(above.get_xticks(), times, strict=True):
        assert place == pytest.approx(4096 * (1 + 100 * time * size / seconds))
    assert one is None or one in times


def test_large_numbers_of_small_pictures_are_written_short(drawn):
    """12,000 steps a second is 12k, and 9,999 is 9999."""
    rows = [row(i, env_steps_per_s=12e3 + i, **{"episode/length": 9000.0 + i}) for i in range(3)]
    length, speed = drawn(rows).axes[1:]
    assert speed.yaxis.get_major_formatter()(12_000) == "12k"
    assert length.yaxis.get_major_formatter().__class__.__name__ != "EngFormatter"
    assert speed.xaxis.get_major_formatter()(4_000_000) == "4M"


@pytest.mark.filterwarnings("error")
def test_a_name_in_letters_that_the_font_lacks_warns_nobody(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(json.dumps(healthy(0)) + "\n")
    draw_curve(metrics, tmp_path / "curve.png", "机器人")
    assert (tmp_path / "curve.png").exists()
