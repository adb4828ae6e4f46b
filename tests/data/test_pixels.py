"""Brightness and orientation are the same whatever the mode and the format, and cuts are found."""

import io
import struct
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from harness.data import cut
from harness.data.decoder import PILLOW, open_decoder
from harness.data.pixels import Undecodable, as_rgb, check_file, content_of, most_reduced, upright
from harness.errors import UserError

SIMPLEJPEG = open_decoder("simplejpeg")
SIZE = 16
SHARES = np.tile(np.linspace(0, 1, SIZE), (SIZE, 1))
RAMP = (SHARES * 255).round().astype(np.uint8)
GREY = Image.fromarray(RAMP)
SIXTEEN = (SHARES * 65535).round().astype(np.uint16)
TWELVE = (SHARES * 4095).round().astype(np.uint16)


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes an orientation, in Pillow's words."""


def middle_square(path, size, decoder=PILLOW):
    return cut.picture(content_of(path), cut.middle_square, size, decoder)


def look_inside(path):
    middle_square(path, SIZE)


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pgm(largest):
    values = (SHARES * largest).round().astype(">u2" if largest > 255 else "u1")
    return b"P5\n%d %d\n%d\n" % (SIZE, SIZE, largest) + values.tobytes()


def tiff(bits, sample_format, data, white_is_one=1, order="<"):
    """A grey TIFF of SIZE x SIZE pixels in one strip, which not every Pillow can write."""
    entries = [
        (256, 3, SIZE),
        (257, 3, SIZE),
        (258, 3, bits),
        (259, 3, 1),
        (262, 3, white_is_one),
        (273, 4, 8 + 2 + 10 * 12 + 4),
        (277, 3, 1),
        (278, 3, SIZE),
        (279, 4, len(data)),
        (339, 3, sample_format),
    ]
    start = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(entries))
    packed = (
        struct.pack(order + "HHI", tag, kind, 1)
        + struct.pack(order + ("I" if kind == 4 else "HH"), *([value, 0][: 1 if kind == 4 else 2]))
        for tag, kind, value in entries
    )
    return start + b"".join(packed) + bytes(4) + data


def png(colour_type, channels):
    """A PNG of 16 bits per channel, which Pillow cannot write in colour."""
    values = np.repeat(SIXTEEN[:, :, None], channels, axis=2)
    if channels in (2, 4):
        values[:, :, -1] = 65535
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", SIZE, SIZE, 16, colour_type, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def twelve_bits():
    pairs = TWELVE.reshape(-1, 2).astype(int)
    packed = [(a >> 4, (a & 15) << 4 | b >> 8, b & 255) for a, b in pairs]
    return np.array(packed, np.uint8).tobytes()


def lab():
    neutral = Image.new("L", GREY.size, 128)
    return Image.merge("LAB", [GREY, neutral, neutral])


def with_transparent_garbage(mode):
    """The ramp over what must not be seen: full colour under an alpha of zero in the first row."""
    image = GREY.convert("RGB")
    image.paste("red", (0, 0, SIZE, 1))
    image.putalpha(Image.fromarray(np.where(np.arange(SIZE)[:, None] > 0, 255, RAMP * 0)))
    return image.convert(mode)


ALIKE = {
    "8 bits": saved(GREY, "PNG"),
    "RGB": saved(GREY.convert("RGB"), "PNG"),
    "palette": saved(GREY.convert("P"), "PNG"),
    "GIF": saved(GREY, "GIF"),
    "BMP": saved(GREY, "BMP"),
    "JPEG": saved(GREY, "JPEG", quality=98),
    "CMYK JPEG": saved(GREY.convert("RGB").convert("CMYK"), "JPEG", quality=98),
    "CMYK TIFF": saved(GREY.convert("RGB").convert("CMYK"), "TIFF"),
    "WebP": saved(GREY.convert("RGB"), "WEBP", lossless=True),
    "YCbCr TIFF": saved(GREY.convert("YCbCr"), "TIFF"),
    "opaque": saved(GREY.convert("RGBA"), "PNG"),
    "grey and alpha": saved(GREY.convert("LA"), "PNG"),
    "16-bit PNG": saved(Image.fromarray(SIXTEEN), "PNG"),
    "48-bit PNG": png(2, 3),
    "64-bit PNG": png(6, 4),
    "16-bit grey and alpha": png(4, 2),
    "16-bit TIFF": saved(Image.fromarray(SIXTEEN), "TIFF"),
    "16-bit compressed TIFF": saved(Image.fromarray(SIXTEEN), "TIFF", compression="tiff_lzw"),
    "16-bit big-endian TIFF": tiff(16, 1, SIXTEEN.astype(">u2").tobytes(), order=">"),
    "16-bit TIFF whose 0 is white": tiff(16, 1, (65535 - SIXTEEN).tobytes(), white_is_one=0),
    "16-bit JPEG 2000": saved(Image.fromarray(SIXTEEN), "JPEG2000"),
    "16-bit PGM": pgm(65535),
    "12-bit PGM": pgm(4095),
    "9-bit PGM": pgm(511),
    "8-bit PGM": pgm(255),
    "12-bit TIFF": tiff(12, 1, twelve_bits()),
    "float TIFF": saved(Image.fromarray(SHARES.astype(np.float32)), "TIFF"),
    "float TIFF whose 0 is white": tiff(
        32, 3, (1 - SHARES).astype("<f4").tobytes(), white_is_one=0
    ),
    "float PFM": saved(Image.fromarray(SHARES.astype(np.float32)), "PPM"),
}


@pytest.mark.parametrize("name", ALIKE)
def test_a_ramp_is_as_bright_in_every_mode(tmp_path, name):
    path = tmp_path / "image"
    path.write_bytes(ALIKE[name])
    found = middle_square(path, SIZE).astype(int)
    assert found.shape == (SIZE, SIZE, 3)
    assert np.abs(found - RAMP[..., None]).max() <= 4
    check_file(path)


def test_modes_that_files_seldom_have():
    little, big = SIXTEEN.astype("<u2").tobytes(), SIXTEEN.astype(">u2").tobytes()
    images = [
        *(GREY.convert("RGB").convert(mode) for mode in ("RGBX", "HSV", "YCbCr")),
        *(GREY.convert("RGBA").convert(mode) for mode in ("RGBa", "LA")),
        GREY.convert("LA").convert("La"),
        GREY.convert("P").convert("PA"),
        *(Image.frombytes(mode, GREY.size, little) for mode in ("I;16", "I;16L", "I;16N")),
        Image.frombytes("I;16B", GREY.size, big),
        Image.fromarray(SHARES.astype(np.float32)),
    ]
    for image in images:
        found = np.asarray(as_rgb(image)).astype(int)
        assert np.abs(found - RAMP[..., None]).max() <= 2, image.mode


def test_lightness_is_not_grey(tmp_path):
    """LAB's middle lightness is a grey of 119 in sRGB, not of 128."""
    path = tmp_path / "lab.tif"
    lab().save(path)
    found = middle_square(path, SIZE)
    assert np.ptp(found, axis=2).max() <= 2
    middle = np.interp(127.5, RAMP[0], found[0, :, 0])
    assert abs(middle - 119) < 3
    assert found[0, 0, 0] <= 1
    assert found[0, -1, 0] >= 253


@pytest.mark.parametrize("level", [0, 1])
def test_one_bit_is_black_and_white(tmp_path, level):
    for kind in ("PNG", "TIFF", "PPM", "BMP"):
        path = tmp_path / kind
        Image.new("1", (20, 20), level).save(path, kind)
        assert (middle_square(path, SIZE) == 255 * level).all(), kind


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGBA", "PNG"), ("RGBA", "WEBP"), ("RGBA", "TIFF"), ("LA", "PNG"), ("LA", "TIFF")],
)
def test_what_is_transparent_lies_over_white(tmp_path, mode, kind):
    path = tmp_path / "image"
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    with_transparent_garbage(mode).save(path, kind, **options)
    found = middle_square(path, SIZE)
    assert (found[0] == 255).all()
    assert np.abs(found[1:].astype(int) - RAMP[1:, :, None]).max() <= 8


def test_marked_colours_are_transparent(tmp_path):
    """One grey, 16-bit grey, colour or entry of the palette is marked instead of an alpha."""
    dark = RAMP.copy()
    dark[0] = 7
    for name, image, mark in (
        ("grey", Image.fromarray(dark), 7),
        ("sixteen", Image.fromarray(dark.astype(np.uint16) << 8), 7 << 8),
        ("colour", Image.fromarray(dark).convert("RGB"), (7, 7, 7)),
        ("entry", Image.fromarray(dark).convert("P"), 7),
        ("alphas", Image.fromarray(dark).convert("P"), bytes([255] * 7 + [0])),
    ):
        path = tmp_path / f"{name}.png"
        image.save(path, transparency=mark)
        found = middle_square(path, SIZE)
        assert (found[0] == 255).all(), name
        assert np.array_equal(found[1:, :, 0], RAMP[1:]), name


def test_half_transparent_is_half_white(tmp_path):
    path = tmp_path / "half.png"
    Image.new("RGBA", (9, 9), (0, 0, 0, 128)).save(path)
    assert (np.abs(middle_square(path, SIZE).astype(int) - 127) <= 1).all()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (tiff(32, 2, (SHARES * 255).astype("<i4").tobytes()), "are signed"),
        (tiff(32, 1, (SHARES * 65535).astype("<u4").tobytes()), r"32 bits \(mode I\)"),
        (tiff(16, 2, (SHARES * 32767).astype("<i2").tobytes()), "are signed"),
        (tiff(8, 2, (SHARES * 127).astype("i1").tobytes()), "are signed"),
        (tiff(32, 3, (SHARES * 255).astype("<f4").tobytes()), "floats .* go from 0 to 255"),
        (tiff(32, 3, (SHARES - 0.5).astype("<f4").tobytes()), "go from -0.5 to 0.5"),
        (tiff(32, 3, (SHARES * np.nan).astype("<f4").tobytes()), "go from nan to nan"),
    ],
)
def test_values_without_a_declared_range_are_refused(tmp_path, content, why):
    path = tmp_path / "image.tif"
    path.write_bytes(content)
    for look in (look_inside, check_file):
        with pytest.raises(Undecodable, match=why):
            look(path)


PHOTO = Image.fromarray(
    np.random.default_rng(0).integers(0, 255, (5, 8, 3), dtype=np.uint8)
).resize((160, 100), Image.Resampling.BICUBIC)
MODES = {"TIFF": ["RGB", "L", "P", "CMYK", "RGBA", "I;16", "1"], "PNG": ["RGB", "L", "P", "LA"]}


def in_mode(mode):
    if mode == "I;16":
        return Image.fromarray(np.asarray(PHOTO.convert("L")).astype(np.uint16) << 8)
    return PHOTO.convert(mode)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 98, "subsampling": 0}),
        ("MPO", {"quality": 98, "subsampling": 0}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("AVIF", {"quality": 98, "subsampling": "4:4:4"}),
    ],
)
def test_every_orientation_is_obeyed_once(tmp_path, kind, options, orientation):
    """As if the pixels were stored upright; a JPEG also where it is decoded at a quarter."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    marked, upright = tmp_path / "marked", tmp_path / "upright"
    for mode in MODES.get(kind, ["RGB"]):
        stored = in_mode(mode)
        turn = TURNS.get(orientation)
        stored.save(marked, kind, exif=exif, **options)
        (stored if turn is None else stored.transpose(turn)).save(upright, kind, **options)
        apart = middle_square(marked, 24).astype(int) - middle_square(upright, 24)
        assert np.abs(apart).max() <= {"JPEG": 3, "MPO": 3, "AVIF": 4}.get(kind, 0), mode


UNKNOWN = Image.Exif()
UNKNOWN[0x0112] = 77


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0" + b"\xff" * 40, b"Exif\0\0MM", b"rubbish", b"", UNKNOWN]
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_is_no_error(tmp_path, kind, exif):
    plain, marked = tmp_path / "plain", tmp_path / "marked"
    GREY.convert("RGB").save(plain, kind)
    GREY.convert("RGB").save(marked, kind, exif=exif)
    assert np.array_equal(middle_square(marked, SIZE), middle_square(plain, SIZE))


def test_content_decides_what_a_file_is(tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(ALIKE["GIF"])
    assert np.array_equal(middle_square(path, SIZE)[..., 0], RAMP)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_image_of_several_counts(tmp_path, kind):
    path = tmp_path / "several"
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(path, kind, save_all=True, append_images=frames[1:])
    red, green, blue = middle_square(path, SIZE).reshape(-1, 3).mean(0)
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize("size", [(3, 3), (7, 300), (300, 7)])
@pytest.mark.parametrize("decoder", [PILLOW, SIMPLEJPEG])
def test_a_small_jpeg_decodes_reduced(size, decoder):
    """As verification decodes it."""
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "JPEG")
    pixels = upright(file.getvalue(), most_reduced, decoder)
    assert (pixels[..., 0] > 240).all()
    assert (pixels[..., 1:] < 15).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (17, 16)])
def test_strange_shapes(tmp_path, size):
    path = tmp_path / "image.png"
    Image.new("RGB", size, (9, 9, 9)).save(path)
    assert (middle_square(path, SIZE) == 9).all()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not an image that Pillow"),
        (b"GIF89a", "not an image that Pillow"),
        (b"P5\n0 0\n255\n", "."),
        (b"<html>not found</html>", "not an image that Pillow"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "not an image that Pillow"),
    ],
)
def test_what_is_no_image(tmp_path, content, why):
    path = tmp_path / "image.png"
    path.write_bytes(content)
    for look in (look_inside, check_file):
        with pytest.raises(Undecodable, match=why):
            look(path)


def test_a_decompression_bomb(tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    Image.new("L", (100, 100)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for look in (look_inside, check_file):
        with pytest.raises(Undecodable, match="decompression bomb"):
            look(path)


def test_what_cannot_be_opened_says_why(tmp_path):
    with pytest.raises(Undecodable, match="Is a directory"):
        middle_square(tmp_path, SIZE)
    with pytest.raises(Undecodable, match="No such file"):
        check_file(tmp_path / "none")


WHOLE = {
    "JPEG": saved(PHOTO, "JPEG"),
    "progressive": saved(PHOTO, "JPEG", progressive=True),
    "PNG": saved(PHOTO, "PNG"),
    "GIF": saved(PHOTO, "GIF"),
    "WebP": saved(PHOTO, "WEBP"),
    "BMP": saved(PHOTO, "BMP"),
    "PPM": saved(PHOTO, "PPM"),
    "TIFF": saved(PHOTO, "TIFF"),
    "AVIF": saved(PHOTO, "AVIF"),
    "JPEG 2000": saved(PHOTO, "JPEG2000"),
}


@pytest.mark.parametrize("name", WHOLE)
@settings(max_examples=25, deadline=None)
@given(share=st.floats(0, 1), tail=st.sampled_from([b"", b"\0", bytes(500), b"\xff\xd9 rest"]))
def test_a_cut_that_is_not_found_does_no_harm(tmp_path_factory, name, share, tail):
    """However a file is cut or padded: what the look at its ends accepts, decodes."""
    content = WHOLE[name]
    path = tmp_path_factory.getbasetemp() / "cut"
    path.write_bytes(content[: int(share * len(content))] + tail)
    try:
        check_file(path)
    except Undecodable:
        return
    assert middle_square(path, SIZE).shape == (SIZE, SIZE, 3)


@pytest.mark.parametrize("name", WHOLE)
def test_a_cut_file_is_found(tmp_path, name):
    content = WHOLE[name]
    path = tmp_path / "cut"
    for share in (0.02, 0.1, 0.5, 0.9, 0.98):
        path.write_bytes(content[: int(share * len(content))])
        for look in (look_inside, check_file):
            with pytest.raises(Undecodable):
                look(path)


PHOTOGRAPHS = {
    "4:4:4": {"subsampling": "4:4:4"},
    "4:2:2": {"subsampling": "4:2:2"},
    "4:2:0": {"subsampling": "4:2:0"},
    "best": {"quality": 100},
    "worst": {"quality": 5},
    "progressive": {"progressive": True},
    "optimised": {"optimize": True},
    "restart markers": {"restart_marker_blocks": 3},
    "kept as RGB": {"keep_rgb": True},
}


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [160, 50, 24, 12])
def test_both_decoders_give_the_same_pixels(tmp_path, name, mode, size):
    """At every reduction: 160 x 100 pixels are decoded whole, to a half, a quarter, an eighth."""
    path = tmp_path / "photograph"
    PHOTO.convert(mode).save(path, "JPEG", **PHOTOGRAPHS[name])
    frame = cut.middle_square
    pillow, other = (
        cut.picture(content_of(path), frame, size, decoder) for decoder in (PILLOW, SIMPLEJPEG)
    )
    assert np.array_equal(pillow, other)


@pytest.mark.parametrize("name", ["CMYK JPEG", "PNG", "GIF", "16-bit TIFF"])
def test_what_simplejpeg_cannot_read_is_left_to_pillow(tmp_path, name):
    content = {**ALIKE, "PNG": ALIKE["RGB"]}[name]
    pillow, other = (
        cut.picture(content, cut.middle_square, SIZE, decoder) for decoder in (PILLOW, SIMPLEJPEG)
    )
    assert np.array_equal(pillow, other)


@pytest.mark.parametrize("spoil", [b"", b"\0", b"\xff\xd9 rest", bytes(500)])
def test_a_flaw_is_judged_by_pillow(spoil):
    """Bytes behind the end, or zeros in the middle: the same picture, or no picture, from both."""
    whole = WHOLE["JPEG"]
    middle = len(whole) // 2
    for content in (whole + spoil, whole[:middle] + bytes(8) + whole[middle + 8 :] + spoil):
        found = []
        for decoder in (PILLOW, SIMPLEJPEG):
            try:
                found.append(cut.picture(content, cut.middle_square, SIZE, decoder).tobytes())
            except Undecodable as error:
                found.append(str(error))
        assert found[0] == found[1]


def test_a_decoder_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    assert open_decoder("auto") == PILLOW
    with pytest.raises(UserError, match=r"data\.decoder=simplejpeg is not installed here"):
        open_decoder("simplejpeg")
