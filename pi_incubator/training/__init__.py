"""What algorithms are made of: their contract, their families, the optimizer step, minibatches, advantage."""
