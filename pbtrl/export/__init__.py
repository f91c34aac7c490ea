"""Export of a trained member: a policy that runs without pbtrl."""
