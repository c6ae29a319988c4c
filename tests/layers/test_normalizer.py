"""Observation normalization against numpy's moments."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from envs_gpu.vec_env import EnvSpec
from kernels.normalize import merge_all
from pi_incubator.layers import normalizer as module
from pi_incubator.layers.normalizer import (
    CHUNK_ROWS,
    GroupNormalizer,
    NoNormalizer,
    ObservationNormalizer,
    make_normalizer,
)


def random_rows(num_rows, width=2, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, width, generator=generator, dtype=dtype) * 3 + 1


def normalizer_that_saw(*batches, dtype=torch.float32):
    normalizer = ObservationNormalizer(batches[0].shape[-1], clip=10.0).to(batches[0].device)
    normalizer = normalizer.double() if dtype == torch.float64 else normalizer
    for batch in batches:
        normalizer.observe(batch)
    return normalizer


def assert_saw(normalizer, rows):
    """Float32 rows are counted with float64 accuracy."""
    rows = rows.double().numpy()
    count, mean, squares = normalizer.moments.numpy()
    assert (count == len(rows)).all()
    np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-6)
    np.testing.assert_allclose(squares, ((rows - rows.mean(0)) ** 2).sum(0), rtol=1e-5)


def test_moments_are_those_of_everything_seen():
    normalizer = ObservationNormalizer(3, clip=1e9)
    rng = np.random.default_rng(0)
    batches = [rng.normal([5.0, -2.0, 1e3], [1.0, 0.1, 3.0], (size, 3)) for size in (7, 64, 1, 200)]
    for batch in batches:
        for rows in np.array_split(batch, min(3, len(batch))):
            normalizer.observe(torch.tensor(rows, dtype=torch.float32))
        normalizer.commit()
    everything = np.concatenate(batches)
    np.testing.assert_allclose(normalizer.mean.numpy(), everything.mean(0), rtol=1e-5)
    np.testing.assert_allclose(normalizer.std.numpy(), everything.std(0), rtol=1e-3)
    assert (normalizer.moments[0] == len(everything)).all()


def test_one_world_cannot_spoil_the_moments():
    """A world that is about to blow up shows 1e8 for a step; the others are normalized as before."""
    normalizer = normalizer_that_saw(random_rows(4096))
    normalizer.commit()
    before = normalizer.std.clone()
    rows = random_rows(4096, seed=1)
    rows[7, 0] = 1e8
    normalizer.observe(rows)
    normalizer.commit()
    assert (normalizer.std < 2 * before).all()
    assert (normalizer.mean - 1.0).abs().max() < 0.5


def test_rare_events_count_in_full():
    """A contact that is there in one of 5,000 steps is 70 standard deviations away, and no outlier."""
    normalizer, generator = ObservationNormalizer(1, clip=10.0), torch.Generator().manual_seed(0)
    for _ in range(50):
        normalizer.observe((torch.rand(2000, 1, generator=generator) < 2e-4).float())
        normalizer.commit()
    count, mean, squares = normalizer.moments[:, 0]
    assert mean > 0
    assert squares / count == pytest.approx(float(mean * (1 - mean)), rel=0.05)


def test_nothing_changes_before_the_commit():
    x = random_rows(50)
    normalizer = normalizer_that_saw(x)
    assert torch.equal(normalizer(x), x.clamp(-10, 10))
    normalizer.commit()
    torch.testing.assert_close(normalizer(x).mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalizer(x).std(0, correction=0), torch.ones(2), atol=1e-4, rtol=0)


def test_commit_without_data_keeps_every_bit():
    normalizer = normalizer_that_saw(random_rows(5))
    normalizer.commit()
    before = {name: value.clone() for name, value in normalizer.state_dict().items()}
    normalizer.commit()
    for name, value in normalizer.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("clip", [1.0, 5.0])
def test_outliers_are_clipped(clip):
    assert ObservationNormalizer(1, clip)(torch.tensor([[100.0], [-100.0]])).tolist() == [[clip], [-clip]]


def test_constant_feature_stays_finite():
    normalizer = normalizer_that_saw(torch.full((10, 1), 7.0))
    normalizer.commit()
    assert normalizer(torch.full((3, 1), 7.0)).abs().max() < 1e-3


@pytest.mark.parametrize("num_rows", [1, 3, 100, CHUNK_ROWS // 2, CHUNK_ROWS // 2 + 1, CHUNK_ROWS])
def test_batches_of_any_size_count_once(num_rows):
    """Those that wait in the buffer, those that fill it, and those that do not go through it."""
    batches = [random_rows(num_rows, seed=seed) for seed in range(2 * CHUNK_ROWS // num_rows // 10 + 3)]
    normalizer = normalizer_that_saw(*batches)
    normalizer.commit()
    assert_saw(normalizer, torch.cat(batches))


def test_shapes_and_dtypes_may_change_between_calls():
    batches = [
        random_rows(4),
        random_rows(7, seed=1),
        random_rows(4, seed=2).double(),
        random_rows(4, seed=3),
    ]
    rollout, single = random_rows(30, seed=4), random_rows(1, seed=5)
    normalizer = normalizer_that_saw(*batches, rollout.view(5, 6, 2), single[0], random_rows(0))
    normalizer.commit()
    assert_saw(normalizer, torch.cat([x.float() for x in (*batches, rollout, single)]))


def test_what_was_observed_is_a_copy():
    x = random_rows(20)
    seen = x.clone()
    normalizer = normalizer_that_saw(x)
    x.fill_(math.nan)
    normalizer.commit()
    assert_saw(normalizer, seen)


def test_rows_that_the_mask_excludes_do_not_count():
    x, mask = random_rows(40), torch.arange(40) % 3 > 0
    normalizer = ObservationNormalizer(2, clip=10.0)
    normalizer.observe(x.masked_fill(~mask[:, None], math.nan), mask)
    normalizer.commit()
    assert_saw(normalizer, x[mask])


def test_an_observation_that_requires_grad_is_counted():
    x = random_rows(20).requires_grad_()
    normalizer = normalizer_that_saw(x, x)
    normalizer.commit()
    assert_saw(normalizer, torch.cat((x, x)).detach())
    assert not normalizer.moments.requires_grad


@pytest.mark.parametrize(
    "wrong", [torch.zeros(4, 3), torch.zeros(4, 1), torch.zeros(4, 2, dtype=torch.int64)]
)
def test_an_observation_that_does_not_fit_is_refused(wrong):
    normalizer = normalizer_that_saw(random_rows(4))
    with pytest.raises(ValueError, match=r"gather_moments: (moments|observation) must be"):
        normalizer.observe(wrong)


def test_the_state_dict_is_enough_to_continue_bit_for_bit():
    def go_on(normalizer):
        for seed in range(3, 9):
            normalizer.observe(random_rows(5, seed=seed))
            if seed % 2:
                normalizer.commit()
        return normalizer.state_dict()

    normalizer = normalizer_that_saw(random_rows(5))
    normalizer.commit()
    normalizer.observe(random_rows(5, seed=1))
    state = {name: value.clone() for name, value in normalizer.state_dict().items()}
    assert (state["gathered"][0] == 5).all()
    other = normalizer_that_saw(random_rows(5, seed=99))  # loading replaces this
    other.load_state_dict(state)
    expected = go_on(normalizer)
    for name, value in go_on(other).items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_has_seen_the_same_and_shares_nothing(copied):
    normalizer = normalizer_that_saw(random_rows(5))
    other = copied(normalizer)
    other.observe(random_rows(5, seed=1))
    for each in (normalizer, other):
        each.commit()
    assert_saw(normalizer, random_rows(5))
    assert_saw(other, torch.cat((random_rows(5), random_rows(5, seed=1))))


def test_float64_observations_keep_float64_accuracy():
    rows = random_rows(300, dtype=torch.float64) + 1e4
    normalizer = normalizer_that_saw(*rows.split(7), dtype=torch.float64)
    normalizer.commit()
    expected = (rows - rows.mean(0)) / rows.std(0, correction=0)
    assert normalizer(rows).dtype == torch.float64
    torch.testing.assert_close(normalizer(rows), expected, rtol=1e-10, atol=1e-10)


def test_what_was_observed_before_a_change_of_dtype_counts():
    normalizer = normalizer_that_saw(random_rows(5)).double()
    normalizer.observe(random_rows(5, seed=1).double())
    normalizer.commit()
    assert_saw(normalizer, torch.cat((random_rows(5), random_rows(5, seed=1))))


def test_ranks_that_merge_normalize_like_one_that_saw_everything():
    ranks = [
        normalizer_that_saw(random_rows(9, seed=seed).double(), dtype=torch.float64) for seed in range(3)
    ]
    gathered = torch.stack([rank.state_dict()["gathered"] for rank in ranks])
    for rank in ranks:
        rank.commit(lambda own: merge_all(gathered))
    rows = torch.cat([random_rows(9, seed=seed) for seed in range(3)]).double()
    whole = normalizer_that_saw(rows, dtype=torch.float64)
    whole.commit()
    for rank in ranks:
        assert torch.equal(rank.moments, ranks[0].moments)
        assert (rank.gathered == 0).all()
        torch.testing.assert_close(rank(rows), whole(rows), rtol=1e-12, atol=1e-12)


def test_all_reduce_gets_what_this_rank_observed():
    normalizer = normalizer_that_saw(random_rows(9))
    given = []
    normalizer.commit(lambda own: given.append(own.clone()) or own)
    torch.testing.assert_close(given[0], normalizer.moments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_in_a_compiled_function_it_counts_every_call(dtype):
    normalizer, expected = (normalizer_that_saw(random_rows(9).to(dtype), dtype=dtype) for _ in range(2))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(x):
        normalizer.observe(x)
        return normalizer(x)

    for seed in range(3):
        x = random_rows(9, seed=seed).to(dtype)
        assert torch.equal(step(x), expected(x))
        expected.observe(x)
    for each in (normalizer, expected):
        each.commit()
    torch.testing.assert_close(normalizer.moments, expected.moments, rtol=1e-6, atol=1e-6)
    assert (normalizer.moments[0] == 36).all()


def test_a_small_batch_does_not_call_the_kernel(monkeypatch):
    """The kernel costs more than a copy: it runs once in many steps."""
    calls = []
    gather = module.gather_moments
    monkeypatch.setattr(
        module, "gather_moments", lambda x, *rest: (calls.append(x.numel()), gather(x, *rest))
    )
    normalizer = normalizer_that_saw(*[random_rows(64, seed=seed) for seed in range(2 * CHUNK_ROWS // 64)])
    normalizer.commit()
    assert [size for size in calls if size] == [2 * CHUNK_ROWS] * 2


def test_onnx_normalizes_alike(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    normalizer = normalizer_that_saw(random_rows(50))
    normalizer.commit()
    x = random_rows(6, seed=1) * 20
    path = tmp_path / "normalizer.onnx"
    torch.onnx.export(normalizer, (x,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path)
    (actual,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(actual, normalizer(x).numpy(), rtol=1e-6, atol=1e-6)


@pytest.fixture
def spec():
    return EnvSpec(
        name="eyes",
        num_envs=4,
        obs_dims={"policy": 2, "critic": 3},
        action_dim=1,
        action_low=(-1.0,),
        action_high=(1.0,),
        joint_names=("hinge",),
        control_hz=50.0,
        max_episode_steps=100,
        device=torch.device("cpu"),
        pixels_shape=(3, 8, 8),
    )


def test_groups_are_normalized_apart_and_pixels_not_at_all(spec):
    normalizer = make_normalizer(spec, ("policy", "critic", "pixels"), enabled=True, clip=10.0)
    pixels = torch.randint(256, (40, 3, 8, 8), dtype=torch.uint8)
    obs = {"policy": random_rows(40), "critic": random_rows(40, width=3), "pixels": pixels, "more": pixels}
    normalizer.observe(obs)
    normalizer.commit()
    actual = normalizer(obs)
    assert list(actual) == ["policy", "critic", "pixels"]
    assert actual["pixels"] is pixels
    for group in ("policy", "critic"):
        torch.testing.assert_close(actual[group].mean(0), torch.zeros(obs[group].shape[1]), atol=1e-5, rtol=0)
    names = [
        f"{group}.{name}" for group in ("policy", "critic") for name in ("mean", "std", "moments", "gathered")
    ]
    assert list(normalizer.state_dict()) == names


def test_every_group_is_merged_across_ranks_in_the_same_order(spec):
    normalizer = make_normalizer(spec, ("critic", "policy"), enabled=True, clip=10.0)
    normalizer.observe({"policy": random_rows(4), "critic": random_rows(4, width=3)})
    widths = []
    normalizer.commit(lambda own: widths.append(own.shape[1]) or own)
    assert widths == [3, 2]


def test_disabled_normalizers_pass_everything_and_have_no_state(spec):
    normalizer = make_normalizer(spec, ("policy", "critic"), enabled=False, clip=10.0)
    obs = {"policy": random_rows(4) * 100, "critic": random_rows(4, width=3)}
    normalizer.observe(obs)
    normalizer.commit()
    assert all(normalizer(obs)[group] is obs[group] for group in obs)
    assert all(type(each) is NoNormalizer for each in normalizer.values())
    assert not normalizer.state_dict()


def test_state_dict_keys_start_with_the_group_within_a_policy():
    policy = nn.Module()
    policy.normalizer = GroupNormalizer({"policy": ObservationNormalizer(2, 10.0)})
    assert "normalizer.policy.moments" in policy.state_dict()
