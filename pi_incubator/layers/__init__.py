"""What networks are made of: layers, encoders, the observation normalizer."""
