"""What tests share that watch an env, or write one of a few lines."""

from envs_gpu.vec_env import VecEnv


class ForgetfulEnv(VecEnv):
    """An env without metrics, whose checkpoints hold nothing."""

    def pop_metrics(self):
        return {}

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class StillEnv(ForgetfulEnv):
    """Worlds that are never stepped, for what only reads the spec."""

    def __init__(self, spec):
        self.spec = spec

    def reset(self, seed):
        raise NotImplementedError

    def step(self, action):
        raise NotImplementedError


def record_results(env):
    """Let `env` also keep what its steps returned."""
    results, step = [], env.step

    def recording_step(action):
        result = step(action)
        results.append(result._replace(obs=result.obs.clone(), final_obs=result.final_obs.clone()))
        return result

    env.step = recording_step
    return results
