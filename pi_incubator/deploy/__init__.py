"""From a checkpoint to what a robot runs, with proof that both act alike."""
