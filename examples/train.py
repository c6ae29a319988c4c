"""Train from Python, with a hook of your own: `python examples/train.py`."""

import pi_incubator as pi
from pi_incubator.hooks.hook import Hook, Progress


class PrintEntropy(Hook):
    """Prints the policy's entropy every ten iterations."""

    def due(self, progress: Progress) -> bool:
        return (progress.iteration + 1) % 10 == 0

    def __call__(self, progress: Progress) -> None:
        entropy = progress.metrics["policy/entropy"].item()  # a host sync
        print(f"{progress.env_steps:,} steps: entropy {entropy:.2f}")


if __name__ == "__main__":
    overrides = ["experiment.name=example", "training.total_steps=100000", "env.task.control_cost_weight=0.2"]
    result = pi.run("configs/ppo/half_cheetah.yaml", overrides, hooks=[PrintEntropy()])
    print("return:", result.evaluation.summary()["return"]["mean"], "in", result.folder)
