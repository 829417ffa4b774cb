"""Folders of pictures, by value: depths, colors, palettes, transparency, EXIF data."""

import struct

import numpy as np
import pytest

from keras_dlopt.data import load
from keras_dlopt.errors import DataError

RAMP = np.arange(48).reshape(6, 8)


def _classes(folder, image, suffix=".png", **options):
    """Two classes of four copies of a picture."""
    for name in "ab":
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(4):
            image.save(folder / name / f"{i}{suffix}", **options)


@pytest.mark.parametrize("suffix", [".png", ".pgm"])
def test_gray_pictures_of_16_bits_keep_them(tmp_path, suffix):
    from PIL import Image

    values = (RAMP * 1300 + 200).astype(np.uint16)
    _classes(tmp_path, Image.fromarray(values), suffix)
    found = load(tmp_path)
    assert found.x_train.dtype == np.float32
    np.testing.assert_array_equal(
        found.x_train[0, ..., 0], values.astype("float32") / np.float32(65535)
    )
    small = load(tmp_path, image_size=(3, 4)).x_train[0, ..., 0] * 65535
    halved = Image.fromarray(values.astype("float32")).resize((4, 3), 2)
    np.testing.assert_allclose(small, np.asarray(halved), atol=0.51)
    with pytest.raises(DataError, match="cannot be given as uint8 without loss"):
        load(tmp_path, dtype="uint8")
    Image.fromarray(RAMP.astype("uint8")).save(tmp_path / "b" / "9.png")
    with pytest.raises(DataError, match=r"9\.png and .* one has 8 bits a pixel, the"):
        load(tmp_path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["L", "I;16"])
def test_pictures_stand_as_their_exif_data_say(tmp_path, orientation, kind):
    from PIL import Image

    # What is stored, by what turning it as the tag says must show: EXIF 2.3, 4.6.4.
    stored = {
        1: RAMP,
        2: RAMP[:, ::-1],
        3: RAMP[::-1, ::-1],
        4: RAMP[::-1],
        5: RAMP.T,
        6: RAMP.T[::-1],
        7: RAMP.T[::-1, ::-1],
        8: RAMP.T[:, ::-1],
    }[orientation]
    values = np.ascontiguousarray(stored).astype("uint8" if kind == "L" else "uint16")
    exif = Image.Exif()
    exif[0x0112] = orientation
    _classes(tmp_path, Image.fromarray(values), exif=exif)
    top = 255 if kind == "L" else 65535
    np.testing.assert_array_equal(
        load(tmp_path).x_train[0, ..., 0], RAMP.astype("float32") / np.float32(top)
    )


@pytest.mark.parametrize("suffix", [".png", ".gif", ".bmp"])
def test_palettes_are_looked_up(tmp_path, suffix):
    from PIL import Image

    image = Image.new("P", (8, 6))
    colors = np.array([[200, 0, 0], [0, 100, 50], [9, 8, 7]], np.uint8)
    image.putpalette(colors.ravel().tolist())
    image.putdata((RAMP % 3).ravel().tolist())
    _classes(tmp_path, image, suffix)
    np.testing.assert_array_equal(
        load(tmp_path, dtype="uint8").x_train[0], colors[RAMP % 3]
    )


def test_pictures_that_mean_nothing_certain_are_refused(tmp_path):
    from PIL import Image

    values = RAMP.astype("float32")
    for kind, text in (("F", "mode 'F'"), ("I", "mode 'I'")):
        image = Image.fromarray(values).convert(kind)
        # By its content, whatever the name says.
        _classes(tmp_path / kind, image, format="TIFF")
        with pytest.raises(DataError, match=f"pixels of 32 bits .{text}"):
            load(tmp_path / kind)
    frames = [Image.fromarray((RAMP + i).astype("uint8")) for i in range(3)]
    _classes(tmp_path / "g", frames[0], ".gif", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="holds 3 pictures, one after the other"):
        load(tmp_path / "g")


def _png(path, values, color):
    """A PNG of 16 bits a channel, which Pillow reads and does not write."""
    import zlib

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    height, width = values.shape[:2]
    head = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("channels", "color"), [(3, 2), (4, 6), (2, 4)])
def test_colors_of_16_bits_are_refused(tmp_path, channels, color):
    from PIL import Image

    _classes(tmp_path, Image.fromarray(RAMP.astype("uint8")))
    values = np.stack([RAMP * 1300 + i for i in range(channels)], -1)
    if channels in (2, 4):
        values[..., -1] = 65535
    path = tmp_path / "b" / "0.png"
    _png(path, values, color)
    with pytest.raises(
        DataError, match=r"0\.png has 16 bits a color channel, of which"
    ):
        load(tmp_path)


@pytest.mark.parametrize("head", [b"P6", b"P3"])
def test_ppm_colors_of_other_depths(tmp_path, head):
    from PIL import Image

    _classes(tmp_path, Image.new("RGB", (8, 6)), ".ppm")
    path = tmp_path / "b" / "0.ppm"

    def write(most):
        values = np.stack([RAMP % (most + 1)] * 3, -1)
        width = ">u2" if most > 255 else "u1"
        data = values.astype(width).tobytes()
        if head == b"P3":
            data = " ".join(map(str, values.ravel().tolist())).encode()
        path.write_bytes(head + b"\n8 6\n%d\n" % most + data)
        return values

    for most in (1023, 65535):
        write(most)
        with pytest.raises(DataError, match="16 bits a color channel"):
            load(tmp_path)
    for most in (15, 255):
        values = write(most)
        found = load(tmp_path, dtype="uint8", validation=0)
        every = np.concatenate([found.x_train, found.x_test])
        wanted = np.rint(values * (255 / most))
        assert any(np.array_equal(one, wanted) for one in every)


@pytest.mark.parametrize("most", [15, 255, 1023, 65535])
def test_pgm_depths_by_value(tmp_path, most):
    values = RAMP * most // 47
    data = values.astype(">u2" if most > 255 else "u1").tobytes()
    for label in "ab":
        (tmp_path / label).mkdir()
        for i in range(5):
            path = tmp_path / label / f"{i}.pgm"
            path.write_bytes(b"P5\n8 6\n%d\n" % most + data)
    found = load(tmp_path).x_train[0, ..., 0]
    # The file's steps on a scale of 8 or 16 bits, rounded to the nearest.
    scale = 65535 if most > 255 else 255
    wanted = np.rint(values / most * scale) / scale
    np.testing.assert_allclose(found, wanted, atol=1e-7)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_png_of_few_bits_by_value(tmp_path, bits):
    from PIL import Image

    values = RAMP % 2**bits
    gray = np.rint(values * (255 / (2**bits - 1))).astype("uint8")
    image = Image.fromarray(gray).convert("1") if bits == 1 else Image.fromarray(gray)
    _classes(tmp_path, image)
    np.testing.assert_array_equal(
        load(tmp_path, dtype="uint8").x_train[0, ..., 0], gray
    )


def _clear(kind):
    """A picture with one transparent pixel."""
    from PIL import Image

    gray = RAMP.astype("uint8")
    if kind == "key":
        return Image.fromarray(gray), {"transparency": 7}
    if kind == "wide key":
        return Image.fromarray(RAMP.astype("uint16")), {"transparency": 7}
    if kind == "palette":
        image = Image.fromarray(gray).convert("P")
        return image, {"transparency": 7}
    alpha = np.where(RAMP == 7, 0, 255).astype("uint8")
    if kind == "LA":
        return Image.fromarray(np.stack([gray, alpha], -1)), {}
    return Image.fromarray(np.stack([gray, gray, gray, alpha], -1)), {}


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette", "key", "wide key"])
def test_transparent_pixels_are_refused_and_an_opaque_alpha_is_not(tmp_path, kind):
    from PIL import Image

    image, options = _clear(kind)
    _classes(tmp_path / "clear", image, **options)
    with pytest.raises(DataError, match="has transparent pixels, and nothing says"):
        load(tmp_path / "clear")
    if kind in ("RGBA", "LA"):
        image.putalpha(255)
        options = {}
    else:
        options = {"transparency": 200}  # which no pixel has
    _classes(tmp_path / "opaque", image, **options)
    found = load(tmp_path / "opaque").x_train[0]
    top = 65535 if kind == "wide key" else 255
    np.testing.assert_array_equal(found[..., 0], np.float32(RAMP) / np.float32(top))
    assert found.shape[-1] == (3 if kind in ("RGBA", "palette") else 1)
    on_black = Image.new("RGBA", (8, 6), "black")
    if kind == "RGBA":  # what the error proposes
        image, _ = _clear(kind)
        on_black.alpha_composite(image)
        _classes(tmp_path / "clear", on_black.convert("RGB"))
        assert load(tmp_path / "clear").x_train[0, 0, 7].tolist() == [0, 0, 0]
