"""Evaluate a trained run and record a video: `python examples/evaluate_and_film.py runs/example`."""

import sys
from pathlib import Path

from pi_incubator.algorithms import make_policy
from pi_incubator.checkpoint import load_policy
from pi_incubator.compute import plan_compute
from pi_incubator.envs import evaluation_env, evaluation_seed
from pi_incubator.evaluation.evaluate import evaluate
from pi_incubator.evaluation.video import record_video
from pi_incubator.run_folder import open_run

if __name__ == "__main__":
    cfg, folder = open_run(sys.argv[1])
    env = evaluation_env(cfg, num_envs=32, device=plan_compute(cfg).device)
    policy = make_policy(cfg, env.spec)
    load_policy(folder, policy)
    seed = evaluation_seed(cfg)
    result = evaluate(env, policy, num_episodes=32, seed=seed).summary()["return"]
    print(f"return: {result['mean']:.1f} ± {result['std']:.1f}")
    record_video(env, policy, Path("video.mp4"), length_s=10.0, seed=seed, num_worlds=4)
    env.close()
