"""Likeness: ComfyUI's door to the pack. The house is described in the README."""
