"""Which image files are opened, decided here alone: raster formats, and none that starts a program."""

from __future__ import annotations

import contextlib
import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from vqvae.surroundings.own_folder import own_folder

# Pillow's plugins whose files are pixels. Not among them: EPS (PostScript, which Ghostscript runs), WMF (which Windows
# draws), IPTC (opens what it holds by any plugin), and BUFR, GRIB, HDF5 and MPEG, which Pillow only knows by name.
RASTER = [
    "AVIF", "BLP", "BMP", "CUR", "DCX", "DDS", "DIB", "FITS", "FLI", "FTEX", "GBR", "GIF", "HEIF", "ICNS", "ICO", "IM", "IMT",
    "JPEG", "JPEG2000", "MCIDAS", "MIC", "MPO", "MSP", "PCD", "PCX", "PIXAR", "PNG", "PPM", "PSD", "QOI", "SGI", "SPIDER",
    "SUN", "TGA", "TIFF", "WEBP", "XBM", "XPM", "XVTHUMB",
]  # fmt: skip
MOST_PIXELS = 89_478_485  # Pillow's own limit: 256 MiB as RGB


PLUGINS = {  # suffixes of images that a package more would read -> what to install
    **dict.fromkeys((".heic", ".heics", ".heif", ".heifs", ".hif"), "pip install pillow-heif"),
    **dict.fromkeys((".avif", ".avifs"), "install a Pillow with AVIF"),
    **dict.fromkeys((".jp2", ".j2k", ".jpx"), "install a Pillow with JPEG 2000"),
}
Image.init()
if importlib.util.find_spec("pillow_heif") is not None:
    with own_folder():
        import pillow_heif
    pillow_heif.register_heif_opener()
FORMATS = [name for name in RASTER if name in Image.OPEN]  # those of the installed Pillow
SUFFIXES = frozenset(
    suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS or name == "MPO"
)  # in lower case; Pillow opens MPO as JPEG


@contextlib.contextmanager
def open_image(file: Path | BinaryIO, most_pixels: int = MOST_PIXELS) -> Iterator[Image.Image]:
    """Context of an opened image of one of FORMATS; its first page.

    Raises whatever Pillow raises, and Image.DecompressionBombWarning for an image of more than `most_pixels`.
    """
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = most_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as image:
                yield image
    finally:
        Image.MAX_IMAGE_PIXELS = limit
