"""Image data: data sets become uint8 images and labels in one array, in an order that is a function of the seed.

``open_data`` reads data sets whole, into memory or a memory-mapped Arrow file; ``open_stream`` reads one as it goes.
"""

from ddpm_hf.data.arrays import ImageData, MappedImages
from ddpm_hf.data.images import BadImage, decode, is_gray, to_mode
from ddpm_hf.data.loading import load_images, open_data
from ddpm_hf.data.order import ImageOrder, epoch_order, mixed_seed
from ddpm_hf.data.sources import Source
from ddpm_hf.data.stream import ImageStream, open_stream

__all__ = [
    "BadImage",
    "ImageData",
    "ImageOrder",
    "ImageStream",
    "MappedImages",
    "Source",
    "decode",
    "epoch_order",
    "is_gray",
    "load_images",
    "mixed_seed",
    "open_data",
    "open_stream",
    "to_mode",
]
