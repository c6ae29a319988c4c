"""`pi-bench returns`: what is said of seeds is what their files hold."""

import json

import numpy as np
import pytest

from bench.cli import main
from bench.returns import interquartile_mean
from pi_incubator.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """Three seeds, judged at 100 and 200 steps during training and at 300 after it."""
    for seed in (1, 2, 3):
        place = tmp_path / "ppo" / f"seed{seed}"
        place.mkdir(parents=True)
        rows = [{"env_steps": 100 * i, "evaluation/return": 10.0 * i + seed} for i in (1, 2)]
        rows += [{"env_steps": 300, "loss": 1.0}]
        (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (place / "evaluation.json").write_text(json.dumps({"return": {"mean": 30.0 + seed}}))
    return tmp_path / "ppo"


def test_the_interquartile_mean_drops_a_quarter_at_each_end():
    returns = [100.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -100.0]
    low, middle, high = interquartile_mean(returns)
    assert middle == np.mean([2.0, 3.0, 4.0, 5.0])
    random = np.random.default_rng(1)
    resampled = np.sort(random.choice(returns, (20_000, 8)))[:, 2:6].mean(1)
    assert (low, high) == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=0.6)


def test_one_seed_has_no_interval():
    assert interquartile_mean([3.0]) == (3.0, 3.0, 3.0)


def test_seeds_are_compared_where_all_were_judged(folder, tmp_path):
    """The result after training counts at the last step."""
    result, table = tmp_path / "a.json", tmp_path / "a.csv"
    main(["returns", f"ours={folder}", "--at", "200", "300", "--json", str(result), "--csv", str(table)])
    metrics = json.loads(result.read_text())["metrics"]
    assert metrics["ours: 200 steps"]["rounds"] == [21.0, 22.0, 23.0]
    assert metrics["ours: 300 steps"]["interquartile_mean"] == 32.0
    low, high = metrics["ours: 300 steps"]["interval_95"]
    assert 31.0 <= low < 32.0 < high <= 33.0
    lines = table.read_text().splitlines()
    assert lines[:2] == ["training,seed,env_steps,return", "ours,seed1,100,11.0"]
    assert len(lines) == 10
    main(["returns", f"ours={folder}", "--json", str(result)])
    assert list(json.loads(result.read_text())["metrics"]) == ["ours: 300 steps"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            '{"env_steps": 100, "evaluation/return": null}\n{"env_steps": 300}\n',
            "was not finite after 100 steps; leave this run out",
        ),
        ("", "holds no evaluation/return; train with evaluation.every set"),
    ],
)
def test_a_run_without_returns_is_named(folder, lines, message):
    (folder / "seed2" / "metrics.jsonl").write_text(lines)
    with pytest.raises(UserError, match=f"seed2/metrics.jsonl: .*{message}"):
        main(["returns", f"ours={folder}"])


@pytest.mark.parametrize(
    ("text", "at", "message"),
    [
        ("{}", [], "has no '='; name a folder that holds one run for each seed, as NAME=FOLDER"),
        ("a={}/nowhere", [], r"nowhere: no \*/metrics.jsonl there"),
        ("a={}", ["--at", "250"], "a: seed1 was not judged after 250 steps; --at takes one of 100, 200, 300"),
    ],
)
def test_what_cannot_be_compared_is_said_in_a_line(folder, text, at, message):
    with pytest.raises(UserError, match=message):
        main(["returns", text.format(folder), *at])
