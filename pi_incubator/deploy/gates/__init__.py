"""What a bundle must show before it may be promoted: one gate a file."""
