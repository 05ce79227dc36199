"""What was learned, in files that ComfyUI core, diffusers and A1111 load."""
