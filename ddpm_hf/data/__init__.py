"""Image data: data sets become uint8 images and labels in one array, in an order that is a function of the seed.

``open_data`` reads data sets whole, into memory or a memory-mapped Arrow file; ``open_stream`` reads one as it goes.
"""

from ddpm_hf.data.arrays import ImageData
from ddpm_hf.data.images import BadImage, decode, image_suffixes, is_gray, to_mode
from ddpm_hf.data.loading import load_images, open_data
from ddpm_hf.data.order import ImageOrder, epoch_order, mixed_seed
from ddpm_hf.data.store import store_images
from ddpm_hf.data.stream import ImageStream, open_stream
from ddpm_hf.source import Source

__all__ = [
    "BadImage",
    "ImageData",
    "ImageOrder",
    "ImageStream",
    "Source",
    "decode",
    "epoch_order",
    "image_suffixes",
    "is_gray",
    "load_images",
    "mixed_seed",
    "open_data",
    "open_stream",
    "store_images",
    "to_mode",
]
