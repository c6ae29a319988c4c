#!/usr/bin/env python3
"""Train an experiment: `python train_ppo.py --config configs/experiment_config_baseline.yaml`."""

from pi_incubator.cli.train import cli

if __name__ == "__main__":
    cli()
