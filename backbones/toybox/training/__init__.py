"""How the toy models are trained: one file per part, a table of parts, one resumable loop."""
