"""`pi-bench`: how fast training is, how soon it starts and how much memory it takes, beside its peers."""

import os

# As the user set it: importing envs_gpu adds what our own loop needs, and a peer must not inherit that.
USER_ENVIRONMENT = dict(os.environ)
