"""The sum tree in every implementation, against a running sum of the priorities in float64."""

import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from kernels import sum_tree
from kernels.sum_tree import make_sample_inputs, make_update_inputs, sample, update

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
EXAMPLES = 30 if INTERPRETED else 400
# A leaf, a few, and both sides of full levels.
CAPACITIES = [1, 2, 15, 16, 17, 31, 33, 255, 256, 257, 1000, 4097]
pytestmark = pytest.mark.usefixtures("poisoned_memory")


def tree_of(priority, implementation):
    tree = sum_tree.make(len(priority), priority.device)
    update(tree, torch.arange(len(priority), device=tree.device), priority, implementation=implementation)
    return tree


def uniforms(size, device="cpu", seed=0):
    return torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device)


def assert_sums(tree):
    """Every inner entry is the float32 sum of its 16 children in pairs, to the bit; the padding is zero."""
    tree = tree.cpu()
    level = sum_tree.priorities(tree)
    end = sum_tree.first_leaf(tree)
    while end > 0:
        sums = level
        for _ in range(4):
            sums = torch.nn.functional.pad(sums, (0, len(sums) % 2))
            sums = sums[::2] + sums[1::2]
        padded = -(-len(sums) // 16) * 16
        stored = tree[end - padded : end]
        assert torch.equal(stored[: len(sums)], sums)
        assert not stored[len(sums) :].any()
        level, end = sums, end - padded
    assert len(level) == 1


def assert_sampled(tree, uniform, implementation):
    """Each index is the one of the running sum, but for what rounding moves its borders."""
    index, probability = sample(tree, uniform, implementation=implementation)
    assert (index.dtype, probability.dtype) == (torch.int64, torch.float32)
    priority = sum_tree.priorities(tree).double().cpu()
    index, wanted = index.cpu(), uniform.double().cpu() * priority.sum()
    assert ((index >= 0) & (index < len(priority))).all()
    assert (priority[index] > 0).all()
    after = priority.cumsum(0)
    before = after - priority
    rounding = 24 * torch.finfo(torch.float32).eps * priority.sum()
    assert (wanted >= before[index] - rounding).all()
    assert (wanted <= after[index] + rounding).all()
    expected = (priority / priority.sum())[index]
    torch.testing.assert_close(probability.cpu().double(), expected, rtol=3e-6, atol=0.0)


@st.composite
def histories(draw):
    """A capacity, some batches of updates with indices that repeat, and numbers to sample by."""
    capacity = draw(st.one_of(st.sampled_from(CAPACITIES), st.integers(1, 300)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batches = []
    for _ in range(draw(st.integers(1, 4))):
        size = draw(st.integers(0, 70))
        index = torch.randint(draw(st.integers(1, capacity)), (size,), generator=generator)
        spread = draw(st.sampled_from([0.0, 1.0, 10.0, 30.0]))  # powers of ten
        priority = 10 ** (spread * (torch.rand(size, generator=generator) - 0.5))
        zero = torch.rand(size, generator=generator) < draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]))
        batches.append((index, priority.masked_fill(zero, 0.0)))
    uniform = torch.rand(draw(st.integers(0, 130)), generator=generator, dtype=torch.float64)
    uniform = torch.cat([uniform, torch.tensor([0.0, 1.0 - 2.0**-53, 1.0], dtype=torch.float64)])
    return capacity, batches, uniform.to(draw(st.sampled_from([torch.float32, torch.float64])))


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(history=histories())
def test_equals_a_running_sum_in_float64(history, implementation, device):
    capacity, batches, uniform = history
    tree = sum_tree.make(capacity, device)
    expected = torch.zeros(capacity)
    for index, priority in batches:
        update(tree, index.to(device), priority.to(device), implementation=implementation)
        for i, p in zip(index.tolist(), priority.tolist(), strict=True):
            expected[i] = p
    assert torch.equal(sum_tree.priorities(tree).cpu(), expected)
    assert_sums(tree)
    some = expected[expected > 0]
    assert sum_tree.minimum(tree).item() == (some.min().item() if len(some) else float("inf"))
    if len(some):
        assert_sampled(tree, uniform.to(device), implementation)


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_integers_are_sampled_exactly(capacity, implementation, device):
    generator = torch.Generator().manual_seed(capacity)
    priority = torch.randint(5, (capacity,), generator=generator).float()
    priority[capacity // 2] = 3.0
    tree = tree_of(priority.to(device), implementation)
    assert sum_tree.total(tree) == priority.sum()
    uniform = uniforms(500)
    expected = torch.searchsorted(priority.cumsum(0), uniform * priority.sum(), right=True)
    actual, probability = sample(tree, uniform.to(device), implementation=implementation)
    assert torch.equal(actual.cpu(), expected)
    assert torch.equal(probability.cpu(), (priority / priority.sum())[expected])


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_every_leaf_of_equal_priorities_is_found(capacity, implementation, device):
    tree = tree_of(torch.full((capacity,), 0.25, device=device), implementation)
    middle = (torch.arange(capacity, dtype=torch.float64) + 0.5) / capacity
    index, _ = sample(tree, middle.to(device), implementation=implementation)
    assert torch.equal(index.cpu(), torch.arange(capacity))


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_one_priority_is_always_sampled(capacity, implementation, device):
    uniform = torch.tensor([0.0, 1e-30, 0.3, 0.5, 1.0 - 2**-24, 1.0], device=device)
    for only in {0, capacity // 2, capacity - 1}:
        priority = torch.zeros(capacity, device=device)
        priority[only] = 1e-20
        tree = tree_of(priority, implementation)
        index, probability = sample(tree, uniform, implementation=implementation)
        assert (index == only).all()
        assert (probability == 1.0).all()


def test_rounding_does_not_lead_to_zero(implementation, device):
    """Sums that swallow what is small, beside leaves of zero."""
    priority = torch.tensor([0.0, 1e-38, 0.0, 1e30, 0.0, 1.0, 1e30, 0.0, 1e-45, 0.0], device=device)
    tree = tree_of(priority, implementation)
    uniform = torch.cat([uniforms(300), torch.tensor([0.0, 1e-70, 0.5, 1 - 2**-53, 1.0])]).to(device)
    index, _ = sample(tree, uniform, implementation=implementation)
    assert (priority[index] > 0).all()
    assert {3, 6} <= set(index.tolist())


@pytest.mark.parametrize("stratified", [False, True])
def test_frequencies_equal_priorities(stratified, implementation, device):
    priority = torch.rand(37, generator=torch.Generator().manual_seed(3)) + 0.05
    priority[[0, 5, 36]] = 0.0
    size = 2000 if INTERPRETED else 200_000
    uniform = uniforms(size)
    if stratified:
        uniform = (torch.arange(size) + uniform) / size
    tree = tree_of(priority.to(device), implementation)
    index, _ = sample(tree, uniform.to(device), implementation=implementation)
    counts = np.bincount(index.cpu().numpy(), minlength=37)
    some = priority.numpy() > 0
    assert (counts[~some] == 0).all()
    expected = priority.double().numpy()[some]
    expected *= size / expected.sum()
    assert chisquare(counts[some], expected).pvalue > 1e-3
    if stratified:
        assert np.abs(counts[some] - expected).max() <= 2.0


def test_the_last_of_equal_indices_stays(implementation, device):
    """In batches that span several blocks of the GPU's kernel too."""
    index = torch.randint(7, (3000,), generator=torch.Generator().manual_seed(0))
    priority = torch.arange(1.0, 3001.0)
    tree = sum_tree.make(9, device)
    update(tree, index.to(device), priority.to(device), implementation=implementation)
    expected = [priority[index == i].max().item() if i < 7 else 0.0 for i in range(9)]
    assert sum_tree.priorities(tree).tolist() == expected
    assert_sums(tree)


def test_many_updates_do_not_drift(implementation, device):
    generator = torch.Generator().manual_seed(0)
    tree = sum_tree.make(70, device)
    for _ in range(20 if INTERPRETED else 3000):
        index = torch.randint(70, (16,), generator=generator)
        priority = 10 ** (12 * torch.rand(16, generator=generator) - 6)
        update(tree, index.to(device), priority.to(device), implementation=implementation)
    assert torch.equal(tree, tree_of(sum_tree.priorities(tree), implementation))


def test_other_strides_and_precisions(implementation, device):
    inputs = make_update_inputs(5, 31, device=device)
    strided = {name: x.repeat_interleave(2)[::2] for name, x in inputs.items() if name != "tree"}
    expected, half = inputs["tree"].clone(), inputs["tree"].clone()
    update(expected, inputs["index"], inputs["priority"], implementation=implementation)
    update(inputs["tree"], **strided, implementation=implementation)
    assert torch.equal(inputs["tree"], expected)
    update(half, inputs["index"], inputs["priority"].half(), implementation=implementation)
    torch.testing.assert_close(half, expected, rtol=1e-3, atol=1e-3)
    uniform = uniforms(62, device)
    index, _ = sample(expected, uniform[::2], implementation=implementation)
    assert torch.equal(index, sample(expected, uniform[::2].contiguous(), implementation=implementation)[0])


def test_empty_batches(implementation, device):
    tree = tree_of(torch.ones(5, device=device), implementation)
    before = tree.clone()
    nothing = torch.empty(0, dtype=torch.int64, device=device)
    update(tree, nothing, nothing.float(), implementation=implementation)
    assert torch.equal(tree, before)
    assert [len(x) for x in sample(tree, nothing.float(), implementation=implementation)] == [0, 0]


BAD_ENTRIES = [
    ("index", 5, 1.0),
    ("index", -1, 1.0),
    ("index", 2**40, 1.0),
    ("priority", 2, -0.5),
    ("priority", 2, float("nan")),
    ("priority", 2, float("inf")),
]


@pytest.mark.parametrize(("name", "i", "p"), BAD_ENTRIES)
def test_an_entry_that_does_not_fit_changes_nothing(name, i, p, implementation, device):
    tree = tree_of(torch.ones(5, device=device), implementation)
    before = tree.clone()
    index, priority = torch.tensor([0, i], device=device), torch.tensor([1.0, p], device=device)
    if implementation == "triton":
        update(tree, index, priority, implementation=implementation)
    else:
        with pytest.raises(ValueError, match=f"sum_tree: {name} must be .* at 1"):
            update(tree, index, 2 * priority, implementation=implementation)
    assert torch.equal(tree, before)


@pytest.mark.parametrize("number", [-0.1, 1.1, float("nan")])
def test_a_number_out_of_range(number, implementation, device):
    tree = tree_of(torch.tensor([0.0, 1.0, 0.0, 2.0, 0.0], device=device), implementation)
    uniform = torch.tensor([0.5, number], device=device)
    if implementation == "triton":
        index, _ = sample(tree, uniform, implementation=implementation)
        assert set(index.tolist()) <= {1, 3}
    else:
        with pytest.raises(ValueError, match=r"sum_tree: uniform must be .* at 1"):
            sample(tree, uniform, implementation=implementation)


def test_a_tree_of_zeros_gives_no_sample(implementation, device):
    tree, uniform = sum_tree.make(5, device), torch.tensor([0.0, 0.9], device=device)
    assert sum_tree.minimum(tree).item() == float("inf")
    if implementation == "triton":
        index, probability = sample(tree, uniform, implementation=implementation)
        assert index.tolist() == [0, 0]
        assert probability.isnan().all()
    else:
        with pytest.raises(ValueError, match="sum_tree: tree must have a priority above zero"):
            sample(tree, uniform, implementation=implementation)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("tree", torch.zeros(33)),  # of no capacity: 16 leaves make 32 entries, 17 make 49
        ("tree", torch.zeros(1)),
        ("tree", torch.zeros(2, 7)),
        ("tree", torch.zeros(13, dtype=torch.float64)),
        ("tree", torch.zeros(26)[::2]),
        ("index", torch.zeros(3, dtype=torch.int32)),
        ("index", torch.zeros(3, 1, dtype=torch.int64)),
        ("index", torch.zeros(3, dtype=torch.int64, device="meta")),
        ("priority", torch.zeros(2)),
        ("priority", torch.zeros(3, dtype=torch.int64)),
        ("uniform", torch.zeros(3, dtype=torch.float16)),
        ("uniform", torch.zeros(3, 1)),
        ("uniform", torch.zeros(3, device="meta")),
    ],
)
def test_an_input_that_does_not_fit_is_named(name, wrong):
    fits = {"tree": sum_tree.make(5), "index": torch.zeros(3, dtype=torch.int64), "priority": torch.ones(3)}
    call, arguments = (sample, {"tree": fits["tree"]}) if name == "uniform" else (update, fits)
    with pytest.raises(ValueError, match=f"sum_tree: {name} must be"):
        call(**(arguments | {name: wrong}))


@pytest.mark.parametrize("capacity", [0, -3, 2**29 + 1])
def test_a_capacity_that_does_not_fit_is_refused(capacity):
    with pytest.raises(ValueError, match="sum_tree: capacity must be"):
        sum_tree.make(capacity)


@pytest.mark.parametrize("chosen", ["reference", "cpu"])
def test_the_operators_pass_opcheck(chosen):
    operators = torch.ops.pi_incubator
    torch.library.opcheck(operators.sum_tree_update, (*make_update_inputs(5, 7).values(), chosen))
    torch.library.opcheck(operators.sum_tree_sample, (*make_sample_inputs(5, 7).values(), chosen))


def test_compiles_into_one_graph():
    def step(tree, index, priority, uniform):
        update(tree, index, priority)
        return sample(tree, uniform), sum_tree.total(tree)

    inputs = make_update_inputs(5, 7) | {"uniform": uniforms(9)}
    theirs = {name: x.clone() for name, x in inputs.items()}
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    (index, probability), total = compiled(**inputs)
    expected, expected_total = step(**theirs)
    assert torch.equal(inputs["tree"], theirs["tree"])
    assert torch.equal(index, expected[0])
    assert torch.equal(probability, expected[1])
    assert total == expected_total


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("size", [256, 4096, 100_000])
def test_on_hardware_in_a_graph_and_the_same_every_time(size):
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(300_000, (size,), generator=generator)
    index[::3] = index[0]
    priority = torch.rand(size, generator=generator)
    expected = sum_tree.make(300_000)
    update(expected, index, priority)
    tree, index, priority = sum_tree.make(300_000, "cuda"), index.cuda(), priority.cuda()
    uniform = uniforms(size, "cuda")
    update(tree, index, priority)  # builds the kernels
    sample(tree, uniform)
    tree.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        update(tree, index, priority)
        sampled, _ = sample(tree, uniform)
    graph.replay()
    assert torch.equal(tree.cpu(), expected)
    assert torch.equal(sampled.cpu(), sample(expected, uniform.cpu())[0])
