"""Learned models of dynamics, and rollouts in them."""
