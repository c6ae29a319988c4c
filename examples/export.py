"""Export a trained run for a robot, and run one step of it: `python examples/export.py runs/example`."""

import sys

import numpy as np

from pi_incubator.cli.export import main
from pi_incubator.runtime import Policy

if __name__ == "__main__":
    run = sys.argv[1]
    main([run, "--target", "onnx", "--precision", "fp32"])  # the same as the command pi-export
    policy = Policy.load(f"{run}/export/onnx")  # needs numpy and onnxruntime only
    policy.reset()
    observation = np.zeros(policy.contract.observation_width, dtype=np.float32)
    print("joints:", [joint.name for joint in policy.contract.joints])
    print("targets:", policy.step(observation))
