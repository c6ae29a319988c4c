"""From a checkpoint to what a robot runs, with proof that both act alike."""

PRECISIONS = ("fp32", "fp16", "int8")
"""What an exported network can be computed in."""
