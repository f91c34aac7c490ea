"""Configs: YAML and overrides become a checked `Config`. Imports no torch, so that mistakes are reported at once."""
