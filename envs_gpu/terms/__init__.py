"""Pure functions that tasks are made of."""
