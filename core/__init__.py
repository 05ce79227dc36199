"""Errors, safe paths, seeded randomness, atomic checkpoints, content hashes. Knows nobody."""
