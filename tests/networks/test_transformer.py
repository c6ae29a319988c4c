"""The gated transformer: its attention is torch's, its gate the paper's, and its window ends."""

import pytest
import torch
from torch.nn.functional import multi_head_attention_forward

from pi_incubator.config import ConfigError, load_config
from pi_incubator.layers.transformer import Gate, TransformerEncoder, TransformerLayer

T, N, D, H, HEADS, WINDOW = 11, 3, 5, 8, 2, 4


def band(num_steps):
    """`[T, T]` bool, true where a step lies outside the window of another one."""
    distance = torch.arange(num_steps)[:, None] - torch.arange(num_steps)
    return (distance < 0) | (distance >= WINDOW)


def test_attention_is_torchs_with_a_band_as_its_mask():
    """`torch.nn.functional`'s multi-head attention, whose additive mask holds the learned biases."""
    torch.manual_seed(0)
    layer = TransformerLayer(H, HEADS, WINDOW, expansion=2).double()
    torch.nn.init.normal_(layer.bias)
    found = []
    layer._behind = lambda x, attended: found.append(attended) or x
    x = torch.randn(N, T, H).double()
    empty = torch.ones(N, T, WINDOW - 1, dtype=torch.bool)
    cache = torch.randn(N, WINDOW - 1, 2 * H).double()
    layer.sequence(x, cache, torch.cat((empty, band(T).expand(N, -1, -1)), -1))
    distance = (torch.arange(T)[:, None] - torch.arange(T)).clamp(0, WINDOW - 1)
    biases = layer.bias[:, WINDOW - 1 - distance].masked_fill(band(T), -torch.inf)  # [h, T, T]
    normed = layer.norms[0](x).transpose(0, 1)
    expected, _ = multi_head_attention_forward(
        *(normed,) * 3,
        H,
        HEADS,
        layer.query_key_value.weight,
        None,
        None,
        None,
        False,
        0.0,
        torch.eye(H).double(),
        None,
        attn_mask=biases.repeat(N, 1, 1),
    )
    torch.testing.assert_close(found[0], expected.transpose(0, 1))


def test_a_gate_is_the_papers():
    """Parisotto et al. 2020, section 3.2, in its own letters; at first it passes most of its input on."""
    torch.manual_seed(0)
    gate = Gate(H)
    x, y = torch.randn(2, N, H)
    w_z, w_r, w_g = (y @ weight.t() for weight in gate.of_update.weight.split(H))
    u_z, u_r = (x @ weight.t() for weight in gate.of_stream.weight.split(H))
    r, z = torch.sigmoid(w_r + u_r), torch.sigmoid(w_z + u_z - 2.0)
    h = torch.tanh(w_g + (r * x) @ gate.of_reset.weight.t())
    torch.testing.assert_close(gate(x, y), (1 - z) * x + z * h)
    assert z.mean() < 0.2


def test_what_left_the_window_is_forgotten():
    torch.manual_seed(0)
    encoder = TransformerEncoder(D, H, 1, HEADS, WINDOW, 2, torch.nn.Tanh)
    observation = torch.randn(T, N, D)
    other = observation.clone()
    other[2] += 1.0
    starts, state = torch.zeros(T, N, dtype=torch.bool), torch.zeros(N, encoder.state_width)
    difference = encoder.sequence(other, state, starts) - encoder.sequence(observation, state, starts)
    changed = difference.abs().amax((1, 2)) > 1e-6
    assert changed.tolist() == [2 <= step < 2 + WINDOW for step in range(T)]


def test_heads_that_do_not_divide_the_width_are_named(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("network: {name: transformer, hidden_sizes: [9]}")
    message = (
        r"network.num_heads = 2: does not divide the first of network.hidden_sizes = 9 .*; set one of them"
    )
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert len(str(caught.value).splitlines()) == 1
