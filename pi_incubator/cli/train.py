"""`pi-train`: train what an experiment file describes, then evaluate, film and export the policy."""

from __future__ import annotations

import resource
import sys
import time
from datetime import timedelta

from pi_incubator.cli._main import run
from pi_incubator.cli._parser import Parser
from pi_incubator.config import load_checked
from pi_incubator.run_folder import RunFolder, begin, check_resume, keep_num_envs


def main(argv: list[str]) -> None:
    """Parse the command line and run the experiment; see `pi-train --help`."""
    began_s = time.perf_counter()
    parser = Parser(prog="pi-train", description=__doc__)
    parser.add_argument("--config", required=True, help="experiment file, YAML or JSON")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override it")
    arguments = parser.parse_args(argv)
    cfg = load_checked(arguments.config, arguments.overrides)
    with RunFolder(cfg) as folder:
        cfg = keep_num_envs(cfg, folder)
        check_resume(cfg, folder)
        # Slow imports come after every check that does not need them.
        from pi_incubator import checkpoint
        from pi_incubator.autosize import settle_num_envs
        from pi_incubator.compute import plan_compute
        from pi_incubator.finish import finish_run
        from pi_incubator.memory import check_memory, is_out_of_memory, out_of_memory
        from pi_incubator.tracking import make_tracker
        from pi_incubator.trainers.on_policy import train

        cfg, plan = settle_num_envs(cfg, plan_compute(cfg))
        check_memory(cfg, plan.device)
        begin(cfg, folder)
        print("\n".join(plan.reasons))
        with make_tracker(cfg, folder, checkpoint.next_iteration(folder)) as tracker:
            tracker.log_params(plan.resolved())
            try:
                env, policy = train(cfg, folder, plan, tracker)
            except Exception as error:
                if is_out_of_memory(error):
                    raise out_of_memory(cfg, plan.device) from None
                raise
            finish_run(cfg, folder, env, policy, tracker)
            env.close()
        print(f"all done in {timedelta(seconds=round(time.perf_counter() - began_s))}, {_peak_memory()}")


def _peak_memory() -> str:
    """The most memory that this process has held, in GB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_bytes = peak if sys.platform == "darwin" else peak * 1024
    return f"peak memory {peak_bytes / 1e9:.2f} GB"


def cli() -> None:
    """Entry point of the console script."""
    run(main)


if __name__ == "__main__":
    cli()
