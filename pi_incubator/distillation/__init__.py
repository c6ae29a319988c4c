"""Distillation: trained policies teach a student that is smaller, or that sees less than they do."""
