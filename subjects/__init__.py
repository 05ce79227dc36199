"""What is to be learned: photos, masks, captions, and the split between training and judging."""

from .folder import load_folder
from .sources import from_images, load_zip
from .split import split_held_out
from .subject import Photo, Subject

__all__ = ["Photo", "Subject", "from_images", "load_folder", "load_zip", "split_held_out"]
