"""`make mutants`: put one small mistake at a time into the code, and see whether a test notices.

python -m tests.mutation                                  a tenth of the mutants of all files
python -m tests.mutation pi_incubator/checkpoint.py --share 1
python -m tests.mutation --report                         what is in the results file so far

Each mutant is tested by the tests that run its line, the quickest first. A process that has imported torch
and the other libraries is forked for each mutant, which saves about ten seconds each time. Existing tools
either start a process for each mutant, or patch functions in a way that torch.compile does not follow.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.mutation.candidate import Candidate, candidates_of
from tests.mutation.report import is_explained, outcomes, print_report
from tests.mutation.worker import Worker, coverage_of, warm_up

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "mutation"
AREAS = {
    "pi_incubator/evaluation": ["tests/evaluation", "tests/cli/test_eval.py"],
    "pi_incubator/runtime": ["tests/runtime"],
    "pi_incubator/deploy/promotion.py": ["tests/deploy/test_promotion.py"],
    "pi_incubator/algorithms": [
        "tests/algorithms",
        "tests/training",
        "tests/distillation",
        "tests/test_toy_algorithm.py",
    ],
    "pi_incubator/data": [
        "tests/data",
        "tests/algorithms",
        "tests/training/test_rollout.py",
        "tests/training/test_broken_worlds.py",
    ],
    "pi_incubator/checkpoint.py": [
        "tests/test_checkpoint.py",
        "tests/test_checkpoint_ranks.py",
        "tests/test_checkpoint_fuzz.py",
        "tests/test_start_from.py",
        "tests/test_masking.py",
    ],
    "pi_incubator/checkpoint_files.py": [
        "tests/test_checkpoint.py",
        "tests/test_checkpoint_ranks.py",
        "tests/test_checkpoint_fuzz.py",
        "tests/test_start_from.py",
    ],
}
"""What is mutated, and the tests that must notice."""


def main() -> int:
    """Test the mutants that have no result yet; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", help="source files or folders; without any, all of them")
    parser.add_argument("--share", type=float, default=0.1, help="how many of the mutants, drawn at random")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--report", action="store_true", help="only print the results so far")
    parser.add_argument("--again", action="store_true", help="first test survivors without a reason again")
    parser.add_argument(
        "--explained",
        action="store_true",
        help="test all that survivors.txt names, to see whether they survive",
    )
    options = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    results = BUILD / "results.jsonl"
    if not options.report:
        num_failed = _test_all(options, results)
        if num_failed:
            print(f"{num_failed} mutants could not be tested, as the lines that begin with 'failed' say")
            return 2
    return print_report(results, options.files)


def _test_all(options: argparse.Namespace, results: Path) -> int:
    """Append the results to the file; returns how many mutants could not be tested, which are not in it."""
    warm_up()
    done = outcomes(results)
    chosen = _chosen(options)
    todo = [candidate for candidate in chosen if candidate.key not in done]
    if options.again or options.explained:
        survived = [one for one in chosen if done.get(one.key, {}).get("outcome") == "survived"]
        todo = [one for one in survived if options.explained or not is_explained(one.key)] + todo
    areas = {_area(candidate.file) for candidate in todo}
    reached = {area: coverage_of(ROOT, BUILD, area, AREAS[area]) for area in sorted(areas)}
    began_s, num_done, num_failed = time.monotonic(), 0, 0
    with (
        tempfile.TemporaryDirectory(dir=BUILD, ignore_cleanup_errors=True) as copies,
        results.open("a", buffering=1) as log,
    ):
        workers = [Worker(_copy(Path(copies, str(number)))) for number in range(options.workers)]
        while todo or any(worker.busy for worker in workers):
            for worker in workers:
                if not worker.busy and todo:
                    candidate = todo.pop(0)
                    worker.start(candidate, *reached[_area(candidate.file)].tests_of(candidate))
                elif ended := worker.poll():
                    num_done += 1
                    if ended["outcome"] == "failed":
                        num_failed += 1
                        print(f"failed: {ended['by']}")
                    else:
                        log.write(json.dumps(ended) + "\n")
                    left_min = len(todo) * (time.monotonic() - began_s) / num_done / 60
                    print(
                        f"{ended['outcome']:8s} {ended['file']}:{ended['line']} {ended['mutant']}", end="   "
                    )
                    print(f"[{len(todo)} left, {left_min:.0f} min]", flush=True)
            time.sleep(0.02)
    return num_failed


def _chosen(options: argparse.Namespace) -> list[Candidate]:
    """The mutants to test; the same ones are drawn again after a file has changed elsewhere."""
    chosen = []
    for path in _files():
        name = str(path.relative_to(ROOT))
        if not options.files or any(name.startswith(wanted.rstrip("/")) for wanted in options.files):
            chosen += candidates_of(name, path.read_text())
    if options.explained:
        return [one for one in chosen if is_explained(one.key)]
    chosen = [one for one in chosen if random.Random(str(one.key)).random() < options.share]
    random.Random(0).shuffle(chosen)
    return chosen


def _files() -> list[Path]:
    places = [ROOT / area for area in AREAS]
    return [file for place in places for file in (sorted(place.rglob("*.py")) if place.is_dir() else [place])]


def _area(file: str) -> str:
    return next(area for area in AREAS if file == area or file.startswith(area + "/"))


def _copy(folder: Path) -> Path:
    """A copy of the tree in `folder`, which a worker may damage."""
    copy = folder / ROOT.name
    copy.mkdir(parents=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    subprocess.run(
        [
            "cp",
            "--parents",
            "-p",
            "-t",
            str(copy),
            *[name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).exists()],
        ],
        cwd=ROOT,
        check=True,
    )
    shared = ROOT.parent / "shared"
    if shared.is_dir():
        (copy.parent / "shared").symlink_to(shared)
    return copy


if __name__ == "__main__":
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    sys.exit(main())
