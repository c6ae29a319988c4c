"""What went through a policy is in the log, whatever the disk does, and reads as what it was."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import bundles
import numpy as np
import psutil
import pyarrow.parquet
import pytest

from pi_incubator.runtime import LogError
from pi_incubator.runtime import log as log_module
from pi_incubator.runtime._log_files import append_rows, convert_to_parquet, read_npz, read_rows
from pi_incubator.runtime.contract import check_contract, read_contract
from pi_incubator.runtime.log import NUM_CHUNKS, SAVE_EVERY_S, NullLog, StepLog

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


def test_a_chunk_for_every_thousand_steps(tmp_path):
    """As docs/runtime.md says. The folder is made, and those above it."""
    folder = tmp_path / "runs" / "today"
    log = StepLog(folder, CONTRACT, format="npz")
    for i in range(1, 2101):
        log.add(np.zeros(bundles.WIDTH, np.float32), np.zeros(12, np.float32), 0)
        if i % 1000 == 0:  # otherwise a busy disk may drop steps
            wait_for(lambda num_added=i: log.written == num_added)
    log.close()
    assert log.dropped == 0
    counts = [len(read_npz(path, CONTRACT).flags) for path in sorted(folder.glob("*.npz"))]
    assert counts == [1000, 1000, 100]


def test_an_empty_folder_that_is_there_is_taken(tmp_path, steps):
    assert write(tmp_path, steps).written == 250


def test_a_log_without_steps_has_no_chunk(tmp_path):
    log = StepLog(tmp_path / "log", CONTRACT)
    assert (log.written, log.dropped) == (0, 0)
    log.close()
    assert [path.name for path in (tmp_path / "log").iterdir()] == ["contract.json"]
    assert read_contract(tmp_path / "log" / "contract.json") == CONTRACT
    assert NullLog().dropped == 0


def test_a_format_that_is_none(tmp_path):
    with pytest.raises(LogError, match=r"^log format: 'csv' is not one of npz, parquet$"):
        StepLog(tmp_path / "log", CONTRACT, format="csv")
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("format", ["npz", "parquet"])
def test_a_file_has_its_name_once_the_disk_has_its_content(tmp_path, steps, monkeypatch, format):
    """Where the power fails, a file that has its name is whole."""
    events, replace = [], os.replace

    def note_sync(descriptor):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        events.append(("sync", path.suffix, path.stat().st_size > 0))

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", lambda *paths: (events.append("replace"), replace(*paths)))
    monkeypatch.setattr(Path, "replace", lambda path, to: os.replace(path, to))
    write(tmp_path / "log", steps, format=format, steps_per_chunk=200)
    assert events == [("sync", ".part", True), "replace"] * 2


def test_rows_are_on_the_disk_when_they_are_counted(tmp_path, steps, monkeypatch):
    write(tmp_path / "log", steps, format="npz")
    chunk, synced = read_npz(tmp_path / "log" / "000000.npz", CONTRACT), []
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    before = os.listdir("/proc/self/fd")
    append_rows(tmp_path / "x.rows", chunk, 0, 4)
    append_rows(tmp_path / "x.rows", chunk, 4, 10)
    assert synced == [4 * 196, 10 * 196]
    assert os.listdir("/proc/self/fd") == before


def test_a_process_that_forgets_its_log_ends_all_the_same(tmp_path):
    code = """
import json, sys
from pathlib import Path
from pi_incubator.runtime.contract import check_contract
from pi_incubator.runtime.log import StepLog
StepLog(Path(sys.argv[1]), check_contract(json.load(sys.stdin)), format="npz")
"""
    command = [sys.executable, "-c", code, str(tmp_path / "log")]
    subprocess.run(command, input=json.dumps(CONTRACT.raw), text=True, check=True, timeout=20)


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
    assert log.written == NUM_CHUNKS * 10
    assert log.dropped == 250 - log.written


def test_a_full_disk_is_told_at_the_end(tmp_path, steps, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(log_module.FORMATS, "npz", full)
    with pytest.raises(LogError, match=r"No space left on device., 250 steps are lost; log to another disk"):
        write(tmp_path / "log", steps, format="npz", steps_per_chunk=100)


# Step i is known by its observation, i, and its target, -i. What is printed says how many steps there were,
# and how many there had been 1 s before the process killed itself.
KILLED = """
import os, signal, sys, time, json
from pathlib import Path
import numpy as np
from pi_incubator.runtime.contract import check_contract
from pi_incubator.runtime.log import StepLog

contract = check_contract(json.load(sys.stdin))
log = StepLog(Path(sys.argv[1]), contract, format=sys.argv[2], steps_per_chunk=500)
times = []
while len(times) <= 560 or time.monotonic() < times[560] + 1.2:
    i = len(times)
    log.add(np.full(33, i, np.float32), np.full(12, -i, np.float32), i % 32)
    times.append(time.monotonic())
    time.sleep(0.004 if i > 500 else 0.0)  # the first chunk is full at once, the second is not
killed_at = time.monotonic()
print(len(times), sum(t < killed_at - 1.0 for t in times), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("format", ["npz", "parquet"])
def test_a_killed_process_loses_at_most_the_last_second(tmp_path, format):
    folder = tmp_path / "log"
    result = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), format],
        input=json.dumps(CONTRACT.raw),
        capture_output=True,
        text=True,
    )
    assert result.returncode == -9, result.stderr
    num_steps, num_before = map(int, result.stdout.split())
    assert num_before > 550
    names = [f"000000.{format}", "000001.rows", "contract.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    num_kept = convert_to_parquet(folder, tmp_path / "x.parquet")
    assert num_before <= num_kept <= num_steps
    ids = np.arange(num_kept)
    check_table(
        pyarrow.parquet.read_table(tmp_path / "x.parquet"),
        (np.tile(ids[:, None], 33), np.tile(-ids[:, None], 12), ids % 32),
    )


def wait_for(happened, timeout_s=25 * SAVE_EVERY_S):
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_rows_of_a_chunk_go_when_it_is_written(tmp_path, steps):
    log = StepLog(tmp_path / "log", CONTRACT, format="npz", steps_per_chunk=200)
    rows = tmp_path / "log" / "000000.rows"
    for row in zip(*(part[:150] for part in steps), strict=True):
        log.add(*row)
    wait_for(lambda: log.written == 150)
    np.testing.assert_array_equal(read_rows(rows, CONTRACT).target, steps[1][:150])
    for row in zip(*(part[150:] for part in steps), strict=True):
        log.add(*row)
    wait_for(lambda: not rows.exists())
    log.close()
    assert (log.written, log.dropped) == (250, 0)
    assert not list((tmp_path / "log").glob("*.rows"))
    assert convert_to_parquet(tmp_path / "log", tmp_path / "x.parquet") == 250


def test_a_chunk_counts_once_where_its_rows_are_still_there(tmp_path, steps):
    """As when the process is killed between the two."""
    folder = tmp_path / "log"
    write(folder, steps, format="npz", steps_per_chunk=100)
    append_rows(folder / "000001.rows", read_npz(folder / "000001.npz", CONTRACT), 0, 50)
    append_rows(folder / "000003.rows", read_npz(folder / "000000.npz", CONTRACT), 0, 7)
    (folder / "000004.part").write_bytes(b"half of a chunk")
    assert convert_to_parquet(folder, tmp_path / "x.parquet") == 257


@pytest.mark.parametrize(
    ("damage", "kept"), [(lambda data: data[:-1], 9), (lambda data: data[:-200] + bytes(200), 8), (bytes, 10)]
)
def test_rows_are_read_up_to_the_first_that_is_not_whole(tmp_path, steps, damage, kept):
    """A row has 196 bytes; where the power fails, the end of the file may be missing or zeros."""
    write(tmp_path / "log", steps, format="npz")
    chunk = read_npz(tmp_path / "log" / "000000.npz", CONTRACT)
    path = tmp_path / "x.rows"
    append_rows(path, chunk, 0, 4)
    append_rows(path, chunk, 4, 10)
    assert path.stat().st_size == 1960
    path.write_bytes(damage(path.read_bytes()))
    found = read_rows(path, CONTRACT)
    for name, values in vars(chunk.first(kept)).items():
        np.testing.assert_array_equal(getattr(found, name), values)


def test_rows_are_written_whole_where_the_disk_takes_parts(tmp_path, steps, monkeypatch):
    write(tmp_path / "log", steps, format="npz")
    chunk, pwrite = read_npz(tmp_path / "log" / "000000.npz", CONTRACT), os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: pwrite(file, data[:100], at))
    append_rows(tmp_path / "x.rows", chunk, 0, 10)
    np.testing.assert_array_equal(read_rows(tmp_path / "x.rows", CONTRACT).target, chunk.target[:10])


class Died(BaseException):
    """No error that anybody catches by name."""


@pytest.mark.parametrize("error", [ValueError, MemoryError, SystemExit, Died])
def test_a_writer_that_dies_is_told_and_later_steps_are_dropped(tmp_path, steps, monkeypatch, error):
    def die(*_):
        raise error("by a mistake")

    monkeypatch.setitem(log_module.FORMATS, "npz", die)
    log = StepLog(tmp_path / "log", CONTRACT, format="npz", steps_per_chunk=100)
    rows = list(zip(*steps, strict=True))
    for row in rows[:101]:
        log.add(*row)
    log._thread.join(5)
    for row in rows[101:]:
        log.add(*row)
    assert log.dropped >= 149
    with pytest.raises(LogError, match=rf"{error.__name__}: by a mistake., 250 steps are lost"):
        log.close()
    assert (log.written, log.dropped) == (0, 250)


def test_half_of_a_chunk_is_removed(tmp_path, steps, monkeypatch):
    def half(path, *_):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(log_module.FORMATS, "npz", half)
    with pytest.raises(LogError, match="250 steps are lost"):
        write(tmp_path / "log", steps, format="npz")
    assert [path.name for path in (tmp_path / "log").iterdir()] == ["contract.json"]


def test_a_step_of_another_width_is_not_taken(tmp_path, steps):
    log = StepLog(tmp_path / "log", CONTRACT, format="npz")
    with pytest.raises(ValueError, match="broadcast"):
        log.add(np.zeros(5, np.float32), steps[1][0], 0)
    log.add(*(part[0] for part in steps))
    log.close()
    assert (log.written, log.dropped) == (1, 0)
    assert read_npz(tmp_path / "log" / "000000.npz", CONTRACT).target.shape == (1, 12)


def test_a_disk_that_is_full_for_a_while_costs_what_was_written_then(tmp_path, steps, monkeypatch):
    real, answers = log_module.FORMATS["npz"], iter([False, True, False])

    def full_at_the_second(*arguments):
        if next(answers):
            raise OSError(28, "No space left on device")
        real(*arguments)

    monkeypatch.setitem(log_module.FORMATS, "npz", full_at_the_second)
    with pytest.raises(LogError, match="100 steps are lost"):
        write(tmp_path / "log", steps, format="npz", steps_per_chunk=100)
    assert convert_to_parquet(tmp_path / "log", tmp_path / "x.parquet") == 150
    flags = pyarrow.parquet.read_table(tmp_path / "x.parquet")["flags"].to_pylist()
    assert flags == [*steps[2][:100], *steps[2][200:]]


def test_rows_that_cannot_be_saved_are_written_with_their_chunk(tmp_path, steps, monkeypatch):
    tried = threading.Event()

    def full(*_):
        tried.set()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(log_module, "append_rows", full)
    log = StepLog(tmp_path / "log", CONTRACT, format="npz")
    log.add(*(part[0] for part in steps))
    assert tried.wait(10)
    log.close()
    assert (log.written, log.dropped) == (1, 0)


def test_a_step_after_the_end_is_dropped(tmp_path, steps):
    log = write(tmp_path / "log", steps)
    log.add(*(part[0] for part in steps))
    log.close()
    assert (log.written, log.dropped) == (250, 1)


def test_times_go_on_evenly_when_the_clock_is_set(tmp_path, steps, monkeypatch):
    start_ns = time.time_ns()
    log = StepLog(tmp_path / "log", CONTRACT, format="npz")
    for i, row in enumerate(zip(*steps, strict=True)):
        monkeypatch.setattr(time, "time_ns", lambda i=i: start_ns + (-1) ** i * 10**17)
        log.add(*row)
    log.close()
    times_ns = read_npz(tmp_path / "log" / "000000.npz", CONTRACT).time_ns
    assert (np.diff(times_ns) >= 0).all()
    assert 0 <= times_ns[0] - start_ns < 10**9
    assert times_ns[-1] - times_ns[0] < 10**9


def test_chunks_are_joined_in_the_order_of_their_numbers(tmp_path, steps):
    """Also where there are more than a million; other files are left alone."""
    folder = tmp_path / "log"
    write(folder, steps, format="npz", steps_per_chunk=100)
    (folder / "000000.npz").rename(folder / "1000000.npz")
    (folder / "000001.npz").rename(folder / "999999.npz")
    for name in ("000002.npz.bak", "x000002.npz", "00002.npz", "000003.txt"):
        (folder / name).write_bytes(b"no chunk")
    assert convert_to_parquet(folder, tmp_path / "x.parquet") == 250
    flags = pyarrow.parquet.read_table(tmp_path / "x.parquet")["flags"].to_pylist()
    assert flags == [*steps[2][200:], *steps[2][100:200], *steps[2][:100]]


def test_a_conversion_that_cannot_be_done_is_one_line(tmp_path, steps, monkeypatch):
    folder = tmp_path / "log"
    write(folder, steps, format="npz")
    with pytest.raises(
        LogError, match=r"none/x.parquet: cannot be written \(.*No such file.*; name another file$"
    ):
        convert_to_parquet(folder, tmp_path / "none" / "x.parquet")
    (folder / "000001.rows").mkdir()
    with pytest.raises(LogError, match=r"000001.rows: cannot be read \(Is a directory\)$"):
        convert_to_parquet(folder, tmp_path / "x.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(LogError, match=r"^pyarrow: not installed; pip install pyarrow, or convert the log"):
        convert_to_parquet(folder, tmp_path / "x.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_a_conversion_overwrites_nothing(tmp_path, steps):
    """Also where it fails, it leaves no half of a file."""
    folder, out = tmp_path / "log", tmp_path / "x.parquet"
    write(folder, steps, format="npz", steps_per_chunk=100)
    (folder / "000001.npz").write_bytes(b"")
    with pytest.raises(LogError, match="remove it"):
        convert_to_parquet(folder, out)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    out.write_text("mine")
    with pytest.raises(LogError, match=r"x.parquet: is there already; name another file"):
        convert_to_parquet(folder, out)
    assert out.read_text() == "mine"


@pytest.mark.parametrize("damage", ["truncated", "columns"])
def test_a_parquet_chunk_that_is_none(tmp_path, steps, damage):
    write(tmp_path / "log", steps, format="parquet")
    path = tmp_path / "log" / "000000.parquet"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        pyarrow.parquet.write_table(pyarrow.parquet.read_table(path).drop_columns("flags"), path)
    with pytest.raises(LogError, match=r"000000.parquet: .*remove it"):
        convert_to_parquet(tmp_path / "log", tmp_path / "x.parquet")


def test_a_folder_that_is_not_empty(tmp_path, steps):
    write(tmp_path / "log", steps)
    with pytest.raises(LogError, match="is not empty; name another folder"):
        StepLog(tmp_path / "log", CONTRACT)
    with pytest.raises(LogError, match="cannot be written"):
        StepLog(tmp_path / "log" / "contract.json", CONTRACT)


@pytest.mark.parametrize("damage", ["truncated", "pickle", "width", "type", "names"])
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
            "type": {"target": arrays["target"].astype(np.float64)},
            "names": {"reward": arrays["flags"]},
        }[damage]
        np.savez(path, **arrays)
    with pytest.raises(LogError, match=r"000000.npz: .*remove it"):
        convert_to_parquet(tmp_path / "log", tmp_path / "x.parquet")


def test_no_log(tmp_path):
    with pytest.raises(LogError, match=r"holds no chunk of a log"):
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
