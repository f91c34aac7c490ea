"""From YAML and overrides to a checked config. Needs no torch, so that mistakes are reported at once."""
