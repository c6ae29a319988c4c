"""DreamerV3 from pictures: what its networks take and give, and that a run continues and is exported."""

import json
from pathlib import Path

import onnxruntime
import pytest
import torch

from pi_incubator.cli import eval as eval_command
from pi_incubator.config import ConfigError, load_config
from pi_incubator.layers.pixels import StridedDecoder, StridedEncoder
from pi_incubator.run import run
from pi_incubator.run_folder import RunFolder
from tests.learning import assert_same_tensors, last_tensors

CONFIG = Path(__file__).parents[2] / "configs" / "dreamer" / "cartpole_swingup_pixels.yaml"
TINY = [
    "env.pixels={width: 16, height: 16, camera: pole, frames: 1, gray: true}",
    "env.num_envs=4",
    "env.episode_length_s=0.07",  # 7 steps
    "network.channels=[4, 8]",
    "network.hidden_sizes=[8]",
    "network.recurrent_size=8",
    "network.num_latents=2",
    "algorithm.horizon=4",
    "algorithm.sequence_length=4",
    "algorithm.batch_size=16",
    "algorithm.imagined_steps=3",
    "algorithm.learning_starts=32",
    "algorithm.buffer_size=64",
    "algorithm.num_bins=21",
    "training.log_every=1",
    "checkpoint.save_every=1",
    "compute.compile=off",
    "tracking.backend=none",
    "evaluation.num_episodes=1",
    "evaluation.video=false",
    "deployment.num_check_observations=20",
]


def train(folder, name, total_steps):
    place = [f"experiment.output_dir={folder}", f"experiment.name={name}"]
    run(CONFIG, [*TINY, *place, f"training.total_steps={total_steps}"])
    return RunFolder(folder / name)


@pytest.mark.parametrize("shape", [(1, 16, 24), (3, 32, 8)])
def test_the_decoder_gives_pictures_of_the_size_that_the_encoder_takes(shape):
    pictures = torch.randint(0, 256, (5, *shape), dtype=torch.uint8)
    encoder, decoder = StridedEncoder(shape, (4, 8, 6)), StridedDecoder(10, shape, (4, 8, 6))
    features = encoder.encode(pictures)
    assert features.shape == (5, encoder.num_features) == (5, 6 * shape[1] * shape[2] // 64)
    assert torch.equal(features, encoder.encode(pictures.float()))
    decoded = decoder(torch.randn(5, 10))
    assert decoded.shape == pictures.shape
    assert 0.0 < decoded.min() <= decoded.max() < 1.0


def test_a_picture_that_cannot_be_halved_often_enough_is_refused_in_one_line():
    with pytest.raises(
        ConfigError, match=r"env.pixels.width = 20: .* multiple of 16; set it to 32"
    ) as caught:
        load_config(CONFIG, ["env.pixels.width=20"])
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
def test_a_run_continues_bit_for_bit_and_its_export_acts_like_the_policy(tmp_path):
    """The file takes a picture and the state, and evaluation with it gives the same return."""
    whole = train(tmp_path, "whole", 128)
    train(tmp_path, "halves", 64)
    assert_same_tensors(last_tensors(whole), last_tensors(train(tmp_path, "halves", 128)))
    session = onnxruntime.InferenceSession(str(whole.onnx), providers=["CPUExecutionProvider"])
    assert [node.name for node in session.get_inputs()] == ["observation", "hidden_in"]
    assert session.get_inputs()[1].shape[1:] == [8]
    returns = {}
    for name, arguments in (("torch", []), ("onnx", ["--onnx"])):
        file = tmp_path / f"{name}.json"
        assert eval_command.main([str(whole.path), "--json", str(file), *arguments]) in (0, None)
        returns[name] = json.loads(file.read_text())["return"]["mean"]
    assert returns["onnx"] == pytest.approx(returns["torch"], rel=0.01)
