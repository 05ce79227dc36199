"""Captions of held-out photos that do not say what the subject looks like."""

from .base import Captioner, ask
from .build import Progress, caption_dataset
from .methods import CAPTIONERS, open_captioner

__all__ = ["CAPTIONERS", "Captioner", "Progress", "ask", "caption_dataset", "open_captioner"]
