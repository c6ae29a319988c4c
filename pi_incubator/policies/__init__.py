"""Policies: what acts, is exported, evaluated and distilled. Critics belong to the algorithms."""
