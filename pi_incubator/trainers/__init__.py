"""The loops: one file a family of algorithms."""
