"""Masks of the subject in its photos: back ends by name behind one interface, and what is done with them."""

from .base import Box, Cut, Locator, Masker, Point
from .methods import METHODS, Segmenter, open_segmenter
from .refine import Refinement
from .segment import Progress, Segmentation, SegmentConfig, segment_photo, segment_subject

__all__ = [
    "METHODS",
    "Box",
    "Cut",
    "Locator",
    "Masker",
    "Point",
    "Progress",
    "Refinement",
    "SegmentConfig",
    "Segmentation",
    "Segmenter",
    "open_segmenter",
    "segment_photo",
    "segment_subject",
]
