"""From a stored image file to a square of uint8 RGB pixels."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_EXIF_ORIENTATION = 0x0112


class UnreadableImage(Exception):
    """The file cannot be decoded; the message says why."""


def decode_image(stored: dict, image_size: int) -> UInt8[np.ndarray, "y x 3"]:
    """Decode one value of an `Image(decode=False)` column ({"bytes", "path"}) to `image_size` squared pixels.

    Raises UnreadableImage for whatever goes wrong on the way.
    """
    try:
        source = stored["path"] if stored["bytes"] is None else io.BytesIO(stored["bytes"])
        with Image.open(source) as image:
            return center_crop(to_rgb(image), image_size)
    except Exception as error:  # Pillow's decoders raise whatever they stumble over: OSError, SyntaxError, struct.error ...
        raise UnreadableImage(str(error)) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any picture to 8-bit RGB, upright by its EXIF tag; transparent parts become white, 16 bits become 8.

    Raises UnreadableImage for floating-point pixels, which have no agreed range.
    """
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels")
    if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in _SIXTEEN_BIT_MODES:  # Pillow's own conversion clips at 255: nearly everything would be white
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(background, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def center_crop(image: Image.Image, image_size: int) -> UInt8[np.ndarray, "y x 3"]:
    """Scale the shorter side to `image_size` (BOX halvings, then BICUBIC) and cut out the centre square.

    Source: `center_crop_arr` in guided_diffusion/image_datasets.py (Dhariwal & Nichol 2021, "ADM"). Scaling only the
    square that is kept gives the same pixels, and keeps a picture of 10000 by 1 from growing to gigabytes.
    """
    while min(image.size) >= 2 * image_size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    shorter = min(image.size)
    scaled = [round(side * image_size / shorter) for side in image.size]
    left, top = ((side - image_size) // 2 for side in scaled)
    if shorter == image_size:
        return np.array(image)[top:top + image_size, left:left + image_size]
    x, y = image.width / scaled[0], image.height / scaled[1]
    box = (left * x, top * y, (left + image_size) * x, (top + image_size) * y)
    return np.array(image.resize((image_size, image_size), Image.Resampling.BICUBIC, box))


def encode_image(pixels: UInt8[np.ndarray, "y x 3"]) -> bytes:
    """The pixels as an image file that is quick to write and read (BMP)."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "bmp")
    return file.getvalue()
