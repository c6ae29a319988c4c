"""What algorithms are made of: their contract, families, optimizer, minibatches, advantage, background updates."""
