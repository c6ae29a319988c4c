"""What went through a policy is in the log, whatever the disk does, and reads as what it was."""

import json
import threading

import bundles
import numpy as np
import psutil
import pyarrow.parquet
import pytest

from pi_incubator.runtime import LogError
from pi_incubator.runtime import log as log_module
from pi_incubator.runtime._log_files import convert_to_parquet, read_npz
from pi_incubator.runtime.contract import check_contract
from pi_incubator.runtime.log import NUM_CHUNKS, StepLog

CONTRACT = check_contract(bundles.contract_dict())


@pytest.fixture
def steps():
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(250, bundles.WIDTH)).astype(np.float32)
    return observations, rng.normal(size=(250, 12)).astype(np.float32), rng.integers(0, 32, 250)


def write(folder, steps, **options):
    log = StepLog(folder, CONTRACT, **options)
    for row in zip(*steps, strict=True):
        log.add(*row)
    log.close()
    return log


def check_table(table, steps):
    observations, targets, flags = steps
    np.testing.assert_array_equal(np.stack(table["observation"].to_pylist()), observations)
    np.testing.assert_array_equal(np.stack(table["target"].to_pylist()), targets)
    np.testing.assert_array_equal(table["flags"], flags)
    assert (np.diff(table["time_ns"]) >= 0).all()
    assert json.loads(table.schema.metadata[b"contract"]) == CONTRACT.raw


def test_npz_and_its_conversion(tmp_path, steps):
    log = write(tmp_path / "log", steps, format="npz", steps_per_chunk=100)
    assert (log.written, log.dropped) == (250, 0)
    assert sorted(path.name for path in (tmp_path / "log").iterdir()) == [
        "000000.npz",
        "000001.npz",
        "000002.npz",
        "contract.json",
    ]
    assert convert_to_parquet(tmp_path / "log", tmp_path / "x.parquet") == 250
    check_table(pyarrow.parquet.read_table(tmp_path / "x.parquet"), steps)


def test_parquet_is_the_default_with_pyarrow(tmp_path, steps):
    write(tmp_path / "log", steps, steps_per_chunk=100)
    files = sorted((tmp_path / "log").glob("*.parquet"))
    assert len(files) == 3
    check_table(pyarrow.concat_tables([pyarrow.parquet.read_table(file) for file in files]), steps)


def test_npz_is_the_default_without_pyarrow(tmp_path, steps, monkeypatch):
    monkeypatch.setattr(log_module, "has_pyarrow", lambda: False)
    write(tmp_path / "log", steps)
    assert read_npz(tmp_path / "log" / "000000.npz", CONTRACT).flags.tolist() == steps[2].tolist()
    with pytest.raises(LogError, match="pyarrow: not installed"):
        StepLog(tmp_path / "other", CONTRACT, format="parquet")


def test_a_slow_disk_drops_steps_and_does_not_wait(tmp_path, steps, monkeypatch):
    may_write, real = threading.Event(), log_module.FORMATS["npz"]

    def slow(*arguments):
        may_write.wait(30)
        real(*arguments)

    monkeypatch.setitem(log_module.FORMATS, "npz", slow)
    log = StepLog(tmp_path / "log", CONTRACT, format="npz", steps_per_chunk=10)
    for row in zip(*steps, strict=True):
        log.add(*row)
    may_write.set()
    log.close()
    assert log.written == (NUM_CHUNKS - 1) * 10
    assert log.dropped == 250 - log.written


def test_a_full_disk_is_told_at_the_end(tmp_path, steps, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(log_module.FORMATS, "npz", full)
    with pytest.raises(LogError, match=r"No space left on device., 250 steps are lost; log to another disk"):
        write(tmp_path / "log", steps, format="npz", steps_per_chunk=100)


def test_a_folder_that_is_not_empty(tmp_path, steps):
    write(tmp_path / "log", steps)
    with pytest.raises(LogError, match="is not empty; name another folder"):
        StepLog(tmp_path / "log", CONTRACT)
    with pytest.raises(LogError, match="cannot be written"):
        StepLog(tmp_path / "log" / "contract.json", CONTRACT)


@pytest.mark.parametrize("damage", ["truncated", "pickle", "width", "names"])
def test_a_chunk_that_is_none(tmp_path, steps, damage):
    write(tmp_path / "log", steps, format="npz")
    path = tmp_path / "log" / "000000.npz"
    data = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    else:
        arrays = dict(np.load(path))
        arrays |= {
            "pickle": {"flags": np.array([{}], object)},
            "width": {"target": arrays["target"][:, :3]},
            "names": {"reward": arrays["flags"]},
        }[damage]
        np.savez(path, **arrays)
    with pytest.raises(LogError, match=r"000000.npz: .*remove it"):
        convert_to_parquet(tmp_path / "log", tmp_path / "x.parquet")


def test_no_log(tmp_path):
    with pytest.raises(LogError, match=r"holds no .npz chunk"):
        convert_to_parquet(tmp_path, tmp_path / "x.parquet")


@pytest.mark.slow
def test_memory_does_not_grow(tmp_path, steps):
    log = StepLog(tmp_path / "log", CONTRACT, format="npz", steps_per_chunk=1000)
    rows = list(zip(*steps, strict=True))
    sizes = []
    for _ in range(5):
        for i in range(50_000):
            log.add(*rows[i % 250])
        sizes.append(psutil.Process().memory_info().rss)
    log.close()
    assert max(sizes[1:]) - sizes[0] < 2 * 2**20, sizes
