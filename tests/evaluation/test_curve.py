"""The learning curve is drawn from whatever was logged."""

import json
import math

import pytest
from PIL import Image

from pi_incubator.errors import UserError
from pi_incubator.evaluation.curve import draw_curve


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


def test_no_metrics_are_one_line(tmp_path):
    with pytest.raises(UserError, match="holds no metrics"):
        draw_curve(tmp_path / "metrics.jsonl", tmp_path / "curve.png")
