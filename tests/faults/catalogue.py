"""Every fault that a run is made to meet, and what has to happen then.

An experiment gets a `Lab` and returns what it observed. Add one as a function of a few lines under `@fault`.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tests.faults.lab import SMALL, Ended, EvilPickle, Lab, cut_short, fix_manifest, flip_bit, signal_of

ONE_LINE = "exit 2, one line"
SAME_HASH = "same hash"


@dataclass(frozen=True)
class Entry:
    """One fault."""

    fault: str
    expected: str
    experiment: Callable[[Lab], str]


CATALOGUE: list[Entry] = []


def fault(name: str, expected: str, cases: Iterable[str] = ("",)) -> Callable[..., Callable[..., str]]:
    """Enter an experiment once, or once for each case; the case is then its second argument."""

    def enter(experiment: Callable[..., str]) -> Callable[..., str]:
        for case in cases:
            run = partial(experiment, case=case) if case else experiment
            CATALOGUE.append(Entry(name.format(case=case), expected, run))
        return experiment

    return enter


# A process that dies


@fault("save: SIGKILL in {case}", SAME_HASH, ["write", "hash", "fsync", "rename", "prune"])
def killed_in_a_save(lab: Lab, case: str) -> str:
    lab.train(fault=f"kill@save:{case}:2")
    return lab.continued()


@fault("SIGKILL at a random moment ({case})", SAME_HASH, ["1", "2", "3"])
def killed_at_random(lab: Lab, case: str) -> str:
    process = lab.start(lab.train_command())
    lab.wait_for("checkpoints/iter_*", process)
    time.sleep(random.Random(int(case)).uniform(0.0, 0.4))
    process.kill()
    process.wait()
    return lab.continued()


@fault("rank 1 killed under torchrun --max-restarts=1", SAME_HASH)
def rank_killed(lab: Lab) -> str:
    ended = lab.call(lab.launched(max_restarts=1), PI_FAULT="kill@update:3/1")
    if ended.code:
        return ended.verdict
    return SAME_HASH if lab.hash() == lab.uninterrupted(ranks=2) else "another hash"


# Signals

MOMENTS = {
    "collect": "collect:4",
    "update": "update:4",
    "save": "save:rename",
    "evaluation beside training": "evaluation",
    "last evaluation": "evaluation:3",
    "export": "export",
}
SIGNALS = [f"{name} in {moment}" for moment in MOMENTS for name in ("SIGTERM", "SIGINT")]


@fault("signal: {case}", "its exit code, and the command that it prints continues to the same hash", SIGNALS)
def signalled(lab: Lab, case: str) -> str:
    name, _, moment = case.partition(" in ")
    every = () if moment == "export" else ("evaluation.every=2",)
    ended = lab.train(*every, fault=f"{name.removeprefix('SIG').lower()}@{MOMENTS[moment]}")
    if signal_of(ended.code) != name:
        return ended.verdict
    _, marker, command = ended.output.splitlines()[-1].partition("continue with: ")
    if not marker:
        return "does not say how to continue"
    ended = lab.call(shlex.split(command))
    if ended.code or lab.hash() != lab.uninterrupted():
        return f"continuing: {ended.verdict}, or another hash"
    return "its exit code, and the command that it prints continues to the same hash"


@fault("signal: {case} while compiling", "ends within 12 s", ["SIGTERM", "SIGINT"])
def signalled_while_compiling(lab: Lab, case: str) -> str:
    cache = str(lab.folder / "cache")
    fault = f"{case.removeprefix('SIG').lower()}@compile"
    process = lab.start(
        lab.train_command("compute.compile=on"), PI_FAULT=fault, TORCHINDUCTOR_CACHE_DIR=cache
    )
    lab.wait_for_output("finishing this iteration", process)
    began_s = time.monotonic()
    ended = lab.end(process)
    took_s = time.monotonic() - began_s
    return "ends within 12 s" if signal_of(ended.code) == case and took_s < 12 else f"took {took_s:.0f} s"


@fault("signal: SIGTERM in an iteration of 20 s", "ended by SIGTERM, continues to the same hash")
def signalled_in_a_long_iteration(lab: Lab) -> str:
    ended = lab.train(fault="term@collect:4,slow@update:4")
    return f"ended by {signal_of(ended.code)}, continues to the {lab.continued()}"


@fault("signal: SIGTERM to one rank of two", "both stop, saved after iteration 2 of 3")
def one_rank_signalled(lab: Lab) -> str:
    ended = lab.call(lab.launched(), PI_FAULT="term@update:2/1")
    says = [line for line in ended.output.splitlines() if "saved after" in line]
    return f"both stop, {says[0].split('; ')[1]}" if says and ended.code else ended.verdict


@fault("signal: SIGTERM, and MLflow's run", "KILLED")
def signalled_with_mlflow(lab: Lab) -> str:
    import sqlite3

    ended = lab.train("tracking.backend=mlflow", fault="term@update:2")
    rows = sqlite3.connect(lab.folder / "runs" / "mlflow.db").execute("select status from runs").fetchall()
    return rows[0][0] if signal_of(ended.code) == "SIGTERM" else ended.verdict


# Damaged files

CHECKPOINT_FILES = [
    *("counters", "critic", "env", "minibatches", "noise"),
    *("optimizer", "policy", "random", "schedule", "skipped"),
]
READ_BY_EVAL = ["policy.safetensors", "manifest.json"]
"""A command that reads a run checks only what it reads; a training that continues checks everything."""


@fault("a flipped bit in the newest checkpoint's {case}", "the one before it is used", CHECKPOINT_FILES)
def flipped_bit(lab: Lab, case: str) -> str:
    return after_damage(lab, f"{case}.safetensors", flip_bit)


@fault("the newest checkpoint's {case} cut short", "the one before it is used", CHECKPOINT_FILES)
def truncated(lab: Lab, case: str) -> str:
    return after_damage(lab, f"{case}.safetensors", cut_short)


@fault("the newest checkpoint's manifest cut short", "the one before it is used")
def truncated_manifest(lab: Lab) -> str:
    return after_damage(lab, "manifest.json", cut_short)


@fault("the newest checkpoint's manifest gone", "the one before it is used")
def no_manifest(lab: Lab) -> str:
    return after_damage(lab, "manifest.json", Path.unlink)


def after_damage(lab: Lab, name: str, damage: Callable[[Path], object]) -> str:
    """What happens after a file of the newest checkpoint was damaged."""
    run = lab.finished_run()
    damage(lab.saved()[-1] / name)
    ended = lab.call(lab.command("eval", run, "--episodes", "1")) if name in READ_BY_EVAL else lab.train()
    warned = "trying the one before it" in ended.output
    return "the one before it is used" if ended.code == 0 and warned else ended.verdict


@fault("training goes on after a flipped bit in the newest checkpoint", SAME_HASH)
def continued_after_a_flipped_bit(lab: Lab) -> str:
    lab.finished_run()
    flip_bit(lab.saved()[-1] / "policy.safetensors")
    return lab.continued()


@fault("every checkpoint damaged", ONE_LINE)
def all_damaged(lab: Lab) -> str:
    lab.finished_run()
    for checkpoint in lab.saved():
        flip_bit(checkpoint / "env.safetensors")
    return lab.train().verdict


BUNDLE_FILES = ["policy.onnx", "contract.json", "SHA256SUMS"]
DAMAGES = {"a flipped bit": flip_bit, "cut short": cut_short, "gone": Path.unlink}


@fault("bundle: {case}", ONE_LINE, [f"{name} {how}" for name in BUNDLE_FILES for how in DAMAGES])
def damaged_bundle(lab: Lab, case: str) -> str:
    name, _, how = case.partition(" ")
    bundle = lab.bundle()
    DAMAGES[how](bundle / name)
    return check_bundle(lab, bundle)


def check_bundle(lab: Lab, bundle: Path) -> str:
    return lab.call(lab.command("runtime", "check", bundle)).verdict


# A disk that is full or read-only


@fault("{case} when the run begins", ONE_LINE, ["a full disk", "a read-only folder"])
def no_room_at_the_start(lab: Lab, case: str) -> str:
    options = "size=64k" if case == "a full disk" else "ro"
    return in_a_mount(lab, options, lab.folder / "runs", lab.train_command("tracking.backend=mlflow"))


def in_a_mount(lab: Lab, options: str, folder: Path, command: list[str], **environment: str) -> str:
    """How a command ends that sees a small or read-only disk at `folder`."""
    folder.mkdir(exist_ok=True)
    script = f"mount -t tmpfs -o {options} none {shlex.quote(str(folder))} && exec {shlex.join(command)}"
    return lab.call(["unshare", "-m", "bash", "-c", script], **environment).verdict


@fault("the disk is full at the second save", f"{ONE_LINE}; {SAME_HASH}")
def full_at_a_save(lab: Lab) -> str:
    return f"{lab.train(fault='enospc@save:2').verdict}; {lab.continued()}"


@fault("the run folder becomes read-only", f"{ONE_LINE}; {SAME_HASH}")
def read_only_later(lab: Lab) -> str:
    return f"{lab.train(fault='erofs@save:2').verdict}; {lab.continued()}"


@fault("the disk is full for the tracker", f"exit 0; {SAME_HASH}")
def full_for_the_tracker(lab: Lab) -> str:
    return f"{lab.train(fault='enospc@tracker:4').verdict}; {lab.continued()}"


@fault("a home that cannot be written", "exit 0")
def read_only_home(lab: Lab) -> str:
    nowhere = "/proc/nowhere"
    return lab.train(HOME=nowhere, XDG_CACHE_HOME=nowhere, MPLCONFIGDIR=nowhere).verdict


@fault("/tmp is {case}", "exit 0", ["noexec", "full"])
def bad_tmp(lab: Lab, case: str) -> str:
    options = "size=200m,noexec" if case == "noexec" else "size=64k"
    temporary = lab.folder / "tmp"
    # So many steps that compute.compile=auto would compile.
    long = ("training.total_steps=512000", "compute.compile=auto", "env.num_envs=512")
    sizes = ("algorithm.horizon=250", "algorithm.minibatch_size=64000", "algorithm.num_epochs=1")
    command = lab.train_command(*long, *sizes)
    return in_a_mount(lab, options, temporary, command, TMPDIR=str(temporary))


@fault("a screen that does not answer", "exit 0, policy.onnx")
def dead_display(lab: Lab) -> str:
    ended = lab.train("evaluation.video=true", DISPLAY=":99")
    return f"{ended.verdict}, {'policy.onnx' if (lab.run / 'policy.onnx').exists() else 'no policy'}"


@fault("output: {case}", "exit 0", ["ascii only", "a pipe that is closed", "a full disk"])
def hostile_output(lab: Lab, case: str) -> str:
    if case == "ascii only":
        return lab.train(LANG="C", PYTHONIOENCODING="ascii").verdict
    target = "| head -1" if case == "a pipe that is closed" else "> /dev/full"
    script = f"{shlex.join(lab.train_command())} {target}; exit ${{PIPESTATUS[0]}}"
    return lab.call(["bash", "-c", script]).verdict


# Several processes, other settings


@fault("a second run in the same folder", f"{ONE_LINE}; the first ends with exit 0")
def two_runs(lab: Lab) -> str:
    first = lab.start(lab.train_command(), PI_FAULT="slow@update:2")
    lab.wait_for("metrics.jsonl", first)
    second = lab.train()
    return f"{second.verdict}; the first ends with {lab.end(first).verdict}"


OTHERS = {
    "network": "network.hidden_sizes=[8]",
    "algorithm": "algorithm.name=sac",
    "task": "env.name=half_cheetah",
    "number of worlds": "env.num_envs=16",
    "task parameter": "env.task.position_margin_m=1.0",
}


@fault("continued with another {case}", f"{ONE_LINE}; {SAME_HASH}", OTHERS)
def other_settings(lab: Lab, case: str) -> str:
    lab.train(fault="kill@update:5")
    clean = [] if case != "algorithm" else ["algorithm.horizon=4"]
    return f"{lab.train(OTHERS[case], *clean).verdict}; {lab.continued()}"


@fault("continued with another number of ranks", "refused")
def other_ranks(lab: Lab) -> str:
    lab.train(fault="kill@update:5")
    ended = lab.call(lab.launched())
    return "refused" if ended.code and "was written by 1 processes" in ended.output else ended.verdict


@fault("files from the {case}", SAME_HASH, ["future", "past"])
def clock_jumped(lab: Lab, case: str) -> str:
    lab.train(fault="kill@update:5")
    moved_s = 10 * 365 * 86_400 * (1 if case == "future" else -1)
    for path in lab.run.rglob("*"):
        os.utime(path, (time.time() + moved_s, time.time() + moved_s))
    return lab.continued()


@fault("the monotonic clock has jumped by a year", SAME_HASH)
def monotonic_clock_jumped(lab: Lab) -> str:
    lab.train(fault="kill@update:5")
    ended = lab.call(["unshare", "-T", "--monotonic", str(365 * 86_400), "--fork", *lab.train_command()])
    return SAME_HASH if ended.code == 0 and lab.hash() == lab.uninterrupted() else ended.verdict


# Numbers that are not finite


@fault("NaN in one world", "exit 0, counted")
def nan_in_one_world(lab: Lab) -> str:
    ended = lab.train("guards.max_broken_share=0.5", fault="nan@env:40")
    rows = [json.loads(line) for line in (lab.run / "metrics.jsonl").read_text().splitlines()]
    return f"{ended.verdict}, {'counted' if any(row['physics/broken'] for row in rows) else 'not counted'}"


@fault("NaN in a gradient", "exit 0, 1 updates skipped")
def nan_in_a_gradient(lab: Lab) -> str:
    return skipped_after(lab, "nan@grad:9")


@fault("{case} in a reward", "exit 0, 8 updates skipped", {"NaN": "nan", "infinity": "inf"})
def reward_not_finite(lab: Lab, case: str) -> str:
    """Advantages are normalized over a rollout, so all updates of one iteration are skipped."""
    return skipped_after(lab, f"{'nan' if case == 'NaN' else 'inf'}@reward:40")


def skipped_after(lab: Lab, fault: str) -> str:
    ended = lab.train(fault=fault)
    rows = [json.loads(line) for line in (lab.run / "metrics.jsonl").read_text().splitlines()]
    return f"{ended.verdict}, {sum(row['updates/skipped'] for row in rows):.0f} updates skipped"


@fault("NaN in all worlds", f"{ONE_LINE}; {SAME_HASH}")
def nan_in_all_worlds(lab: Lab) -> str:
    save = "checkpoint.save_every=1"
    return f"{lab.train(save, fault='nan@worlds:40').verdict}; {lab.continued(save)}"


# A tracking server


@fault("a tracking server that is away", ONE_LINE)
def server_away(lab: Lab) -> str:
    return lab.train("tracking.backend=mlflow", "tracking.uri=http://127.0.0.1:9").verdict


@fault("a tracking server that does not answer", f"{ONE_LINE} within 90 s")
def server_slow(lab: Lab) -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        ended = lab.train("tracking.backend=mlflow", f"tracking.uri={address}")
    return f"{ended.verdict} within {'90 s' if ended.took_s < 90 else f'{ended.took_s:.0f} s'}"


@fault("a tracking store that fails and comes back", f"exit 0, a warning; {SAME_HASH}")
def store_comes_back(lab: Lab) -> str:
    ended = lab.train("tracking.backend=mlflow", fault="raise@tracker:4")
    warning = "a warning" if "the training goes on" in ended.output else "silence"
    return f"{ended.verdict}, {warning}; {lab.continued('tracking.backend=mlflow')}"


# Files that somebody else has made

PICKLED = ["policy.safetensors", "random.safetensors", "env.safetensors", "manifest.json"]


@fault("an evil pickle as {case} of a checkpoint", "refused, nothing was run", PICKLED)
def evil_checkpoint(lab: Lab, case: str) -> str:
    run = lab.finished_run()
    for checkpoint in lab.saved():
        (checkpoint / case).write_bytes(evil(lab))
        if case != "manifest.json":
            fix_manifest(checkpoint)
    if case == "policy.safetensors":
        return refused(lab, lab.call(lab.command("eval", run, "--episodes", "1")))
    return refused(lab, lab.train("training.total_steps=2048"))


@fault("an evil pickle as {case} of a bundle", "refused, nothing was run", [*BUNDLE_FILES, "bundle.tar.gz"])
def evil_bundle(lab: Lab, case: str) -> str:
    bundle = lab.bundle()
    path = bundle if case in BUNDLE_FILES else lab.folder / case
    (bundle / case if case in BUNDLE_FILES else path).write_bytes(evil(lab))
    return refused(lab, lab.call(lab.command("runtime", "check", path)))


@fault("an evil pickle as {case}", "refused, nothing was run", ["a dataset", "a dump", "an array in a dump"])
def evil_file(lab: Lab, case: str) -> str:
    path = lab.folder / ("broken_1_1.npz" if "dump" in case else "demonstrations.safetensors")
    if case == "an array in a dump":
        np.savez(path, format=np.array([EvilPickle(lab.folder / "trace")], dtype=object))
    else:
        path.write_bytes(evil(lab))
    if "dump" in case:
        return refused(lab, lab.call(lab.command("envs", "replay", path)))
    teacher = lab.finished_run()
    command = lab.command("distill", "--teacher", teacher, "--student", "mlp", "--offline", path)
    return refused(lab, lab.call([*command, f"experiment.output_dir={lab.folder / 'students'}"]))


@fault("an experiment file with a YAML tag that calls a function", "refused, nothing was run")
def evil_yaml(lab: Lab) -> str:
    lab.config.write_text(f"experiment: !!python/object/apply:os.mknod ['{lab.folder / 'trace'}']\n{SMALL}")
    return refused(lab, lab.train())


def evil(lab: Lab) -> bytes:
    """A pickle that leaves a trace where it is loaded."""
    return pickle.dumps(EvilPickle(lab.folder / "trace"))


def refused(lab: Lab, ended: Ended) -> str:
    """Whether a command refused a file in one line, and ran nothing of it."""
    was_run = "THE PICKLE WAS RUN" if (lab.folder / "trace").exists() else "nothing was run"
    return f"{'refused' if ended.verdict == ONE_LINE else ended.verdict}, {was_run}"


@fault("ONNX: {case}", ONE_LINE, ["weights in another file", "an endless loop"])
def hostile_onnx(lab: Lab, case: str) -> str:
    """The hashes of the bundle are those of the changed file: only its content is wrong."""
    bundle = lab.bundle()
    kind = "external" if case == "weights in another file" else "loop"
    subprocess.run([sys.executable, Path(__file__).with_name("onnx_files.py"), bundle, kind], check=True)
    return check_bundle(lab, bundle)


# Faults themselves


@fault("PI_FAULT with a mistake", ONE_LINE)
def mistaken_fault(lab: Lab) -> str:
    return lab.train(fault="kill@nowhere").verdict


@fault("the run's folder is a link to nowhere", ONE_LINE)
def dangling_link(lab: Lab) -> str:
    (lab.folder / "runs").mkdir()
    lab.run.symlink_to("/proc/nowhere")
    return lab.train().verdict
