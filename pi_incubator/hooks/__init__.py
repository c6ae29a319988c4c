"""What happens beside training: logging, guards, evaluation, checkpoints. One file each, one shape.

The loop calls them after every iteration, in the order logging, guards, evaluation, the caller's own hooks,
checkpoint: nothing is saved that a guard has not seen.
"""
