import numpy as np
import pytest
from PIL import Image

from pipeline.core.data.decode import UnreadableImage, center_crop, decode_image, encode_image


def adm_center_crop(image, size):
    """`center_crop_arr` of guided-diffusion, as published: it scales the whole picture and crops afterwards."""
    while min(*image.size) >= 2 * size:
        image = image.resize(tuple(x // 2 for x in image.size), resample=Image.Resampling.BOX)
    scale = size / min(*image.size)
    image = image.resize(tuple(round(x * scale) for x in image.size), resample=Image.Resampling.BICUBIC)
    pixels = np.array(image)
    y, x = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[y:y + size, x:x + size]


@pytest.mark.parametrize("size", [(500, 375), (333, 500), (64, 64), (32, 47), (40, 33), (20, 31), (131, 640)])
def test_crop_is_that_of_adm(size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    assert np.abs(center_crop(image, 32).astype(int) - adm_center_crop(image, 32)).max() <= 1


def test_right_size_is_untouched():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(decode_image({"bytes": encode_image(pixels), "path": None}, 32), pixels)


@pytest.mark.parametrize("size", [(20000, 1), (1, 20000), (5000, 40), (1, 1)])
def test_extreme_shapes(photo, size):
    assert center_crop(photo(*size), 64).shape == (64, 64, 3)


@pytest.mark.parametrize("mode, file_format", [("L", "jpeg"), ("CMYK", "jpeg"), ("P", "png"), ("P", "gif"), ("1", "png"),
                                               ("RGBA", "png"), ("LA", "png"), ("YCbCr", "jpeg")])
def test_every_mode_becomes_rgb(photo, stored, mode, file_format):
    image = photo(48, 40, mode)
    expected = center_crop(image.convert("RGB"), 32).astype(float)
    options = {"quality": 95} if file_format == "jpeg" else {}
    pixels = decode_image(stored(image, file_format, **options), 32)
    assert pixels.dtype == np.uint8 and np.abs(pixels - expected).mean() < 6


def test_sixteen_bits_are_scaled_not_clipped(stored):
    grey = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    pixels = decode_image(stored(Image.fromarray(grey), "png"), 64)
    assert np.array_equal(pixels, np.repeat((grey >> 8)[..., None], 3, 2))


def test_transparent_becomes_white(stored):
    image = Image.new("RGBA", (32, 32), (10, 20, 30, 0))
    assert (decode_image(stored(image, "png"), 32) == 255).all()
    palette = Image.new("RGB", (32, 32), (200, 0, 0)).quantize(2)
    palette.putpixel((5, 6), 1)
    pixels = decode_image(stored(palette, "png", transparency=palette.getpixel((0, 0))), 32)
    assert (pixels == 255).all(-1).sum() == 32 * 32 - 1


@pytest.mark.parametrize("orientation, turn", [(3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_270),
                                               (2, Image.Transpose.FLIP_LEFT_RIGHT)])
def test_exif_orientation_is_obeyed(photo, stored, orientation, turn):
    image = photo(48, 40)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = decode_image(stored(image, "png", exif=exif), 32)
    assert np.array_equal(turned, center_crop(image.transpose(turn), 32))
    assert not np.array_equal(turned, center_crop(image, 32))


def test_unreadable_files(photo, stored, tmp_path):
    whole = stored(photo(200, 200), "jpeg")["bytes"]
    for broken in (b"", b"no image", whole[:len(whole) // 2], whole[:100]):
        with pytest.raises(UnreadableImage):
            decode_image({"bytes": broken, "path": None}, 32)
    with pytest.raises(UnreadableImage):
        decode_image({"bytes": None, "path": str(tmp_path / "missing.jpg")}, 32)
    with pytest.raises(UnreadableImage, match="floating"):
        decode_image(stored(Image.new("F", (32, 32)), "tiff"), 32)
