"""Run by torchrun in the tests: trains some iterations, and rank 0 saves the weights.

python -m torch.distributed.run --nproc-per-node=2 train_ranks.py OUT ITERATIONS DTYPE CONFIG SETTINGS...
"""

import sys

import torch
from safetensors.torch import save, save_file

from pi_incubator.algorithms import algorithm_class
from pi_incubator.compute import plan_compute
from pi_incubator.config import load_config
from pi_incubator.distributed import join, leave


def main(out, num_iterations, dtype, config, *settings):
    torch.set_default_dtype(getattr(torch, dtype))
    distributed = join(on_cuda=False)
    cfg = load_config(config, settings)
    plan = plan_compute(cfg)
    torch.manual_seed(cfg.experiment.seed)
    kind = algorithm_class(cfg)
    algorithm = kind(cfg, kind.make_env(cfg, plan, None, distributed), distributed, plan)
    for _ in range(int(num_iterations)):
        algorithm.collect()
        metrics = algorithm.update()
    state = {name: value.contiguous() for name, value in algorithm.policy.state_dict().items()}
    weights = distributed.gather(save(state))
    if distributed.is_main:
        assert set(weights) == {weights[0]}, "the ranks hold different weights"
        metrics = {f"metrics.{name}": value.double() for name, value in metrics.items()}
        save_file(state | metrics, out)
    algorithm.close()
    leave(distributed)


if __name__ == "__main__":
    main(*sys.argv[1:])
