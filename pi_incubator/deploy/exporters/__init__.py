"""Exporters: what a target ships, one file each."""
