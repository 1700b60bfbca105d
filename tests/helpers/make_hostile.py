"""Pictures that are damaged, lie or are made to exhaust a decoder; most are real ones mutated by a fixed seed."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, features

HUGE = 30_000
OPTIONAL = {'WEBP': 'webp', 'AVIF': 'avif', 'JPEG2000': 'jpg_2000'}


def encode(image, format_, **options):
    sink = io.BytesIO()
    image.save(sink, format_, **options)
    return sink.getvalue()


def real_pictures(photo, size=48):
    """(suffix, bytes) of a picture in every format that is decoded, in their usual kinds."""
    rgb = photo.convert('RGB').resize((size, size))
    rgba, grey, palette = rgb.convert('RGBA'), rgb.convert('L'), rgb.convert('P')
    rgba.putalpha(grey)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, 'a picture'
    animated = {'save_all': True, 'append_images': [rgb.rotate(90 * i) for i in range(1, 4)], 'duration': 40}
    kinds = [
        ('jpg', rgb, 'JPEG', {}),
        ('jpg', rgb, 'JPEG', {'progressive': True, 'exif': exif}),
        ('jpg', rgb.convert('CMYK'), 'JPEG', {}),
        ('jpg', grey, 'JPEG', {'icc_profile': bytes(range(256)) * 20, 'exif': exif}),
        ('png', rgb, 'PNG', {}),
        ('png', rgba, 'PNG', {'exif': exif}),
        ('png', palette, 'PNG', {'transparency': bytes(range(256))}),
        ('png', Image.fromarray(np.asarray(grey).astype(np.uint16) * 257), 'PNG', {}),
        ('apng', rgb, 'PNG', animated),
        ('webp', rgb, 'WEBP', {'exif': exif}),
        ('webp', rgba, 'WEBP', {'lossless': True}),
        ('webp', rgb, 'WEBP', animated),
        ('gif', palette, 'GIF', {'comment': b'a picture'}),
        ('gif', rgb, 'GIF', animated),
        ('bmp', rgb, 'BMP', {}),
        ('bmp', palette, 'BMP', {}),
        ('tif', rgb, 'TIFF', {'exif': exif}),
        ('tif', rgba, 'TIFF', {'compression': 'tiff_lzw'}),
        ('tif', rgb, 'TIFF', {'compression': 'jpeg'}),
        ('tif', grey.convert('1'), 'TIFF', {'compression': 'group4'}),
        ('tif', rgb, 'TIFF', {'compression': 'tiff_adobe_deflate', **animated}),
        ('tif', rgb, 'TIFF', {'big_tiff': True}),
        ('avif', rgb, 'AVIF', {'exif': exif}),
        ('avif', rgb, 'AVIF', animated),
        ('ppm', rgb, 'PPM', {}),
        ('pgm', grey, 'PPM', {}),
        ('jp2', rgb, 'JPEG2000', {}),
        ('jp2', rgba, 'JPEG2000', {'tile_size': (16, 16)}),
        ('j2k', grey, 'JPEG2000', {'no_jp2': True}),
        ('ico', rgba, 'ICO', {}),
        ('ico', rgb, 'ICO', {'bitmap_format': 'bmp'}),
    ]
    for suffix, image, format_, options in kinds:
        if features.check(OPTIONAL.get(format_, 'pil')):
            yield suffix, encode(image, format_, **options)


def flip_bits(data, rng, _):
    """Some bits, half the time in the header."""
    reach = len(data) if rng.random() < 0.5 else min(len(data), 200)
    changed = np.frombuffer(data, np.uint8).copy()
    places = rng.integers(0, reach, int(rng.integers(1, 12)))
    changed[places] ^= (1 << rng.integers(0, 8, len(places))).astype(np.uint8)
    return changed.tobytes()


def cut(data, rng, _):
    """The beginning."""
    return data[: int(rng.integers(0, len(data)))]


def splice(data, rng, other):
    """The beginning of one picture and the end of another."""
    return data[: int(rng.integers(1, len(data)))] + other[int(rng.integers(0, len(other))) :]


def overwrite(data, rng, _):
    """A run of the same byte, as of a lost block."""
    start = int(rng.integers(0, len(data)))
    length = int(rng.integers(1, 64))
    return data[:start] + bytes([rng.choice([0, 1, 127, 255])]) * length + data[start + length :]


def repeat(data, rng, _):
    """A part, many times."""
    first, last = sorted(int(i) for i in rng.integers(0, len(data), 2))
    return data[:first] + data[first:last] * int(rng.integers(2, 30)) + data[last:]


def lie(data, rng, _):
    """Two or four bytes of the header, where dimensions, counts and offsets are, as a number that is hardly true."""
    start = int(rng.integers(4, min(len(data), 120)))
    number = rng.choice([0, 1, 0xFFFF, 0x7FFF, HUGE, 0xFFFFFFFF, 0x7FFFFFFF, 100_000_000])
    kind = rng.choice(['>H', '<H', '>I', '<I'])
    value = struct.pack(kind, int(number) & (0xFFFF if kind[1] == 'H' else 0xFFFFFFFF))
    return data[:start] + value + data[start + len(value) :]


MUTATIONS = (flip_bits, cut, splice, overwrite, repeat, lie)


def mutated(pictures, count, seed):
    """(name, bytes) of mutated pictures; every tenth has another format's suffix."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        suffix, data = pictures[number % len(pictures)]
        other_suffix, other = pictures[int(rng.integers(len(pictures)))]
        change = MUTATIONS[number // len(pictures) % len(MUTATIONS)]
        name = f'{number:05d}-{change.__name__}'
        yield f'{name}.{other_suffix if number % 10 == 0 else suffix}', change(data, rng, other)


# Made by hand


def png(width, height, chunks, depth=8, colour=2):
    """A PNG of (kind, data) chunks after a header."""
    header = struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0)
    parts = [(b'IHDR', header), *chunks, (b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data)) for kind, data in parts
    )


def blank_png(width, height, *chunks, colour=0):
    """A black PNG, compressed as far as it goes."""
    row_bytes = 1 + width * {0: 1, 2: 3, 6: 4}[colour]
    packer = zlib.compressobj(9)
    rows = [packer.compress(bytes(row_bytes * 100)) for _ in range(height // 100)]
    rows.append(packer.compress(bytes(row_bytes * (height % 100))) + packer.flush())
    return png(width, height, [*chunks, (b'IDAT', b''.join(rows))], colour=colour)


def tiff(entries, first=8, next_=0, pixels=b'', endian='<'):
    """A TIFF or EXIF block of one directory: entries are (tag, type, count, value or offset)."""
    directory = struct.pack(f'{endian}H', len(entries))
    directory += b''.join(struct.pack(f'{endian}HHII', *entry) for entry in sorted(entries))
    magic = b'II*\0' if endian == '<' else b'MM\0*'
    return magic + struct.pack(f'{endian}I', first) + directory + struct.pack(f'{endian}I', next_) + pixels


def tiff_image(width=8, height=8, next_=0, more=(), **changes):
    """A grey TIFF in one strip, with tags changed or added."""
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: width * height}
    tags.update({int(name[1:]): value for name, value in changes.items()})
    return tiff([(tag, 4, 1, value) for tag, value in tags.items()] + list(more), next_=next_, pixels=bytes(64))


def jpeg_with(segment, rest):
    """A JPEG with an APP1 segment more."""
    return rest[:2] + b'\xff\xe1' + struct.pack('>H', len(segment) + 2) + segment + rest[2:]


def bmp(width, height, body, compression=1):
    """A BMP with a palette, run-length encoded by default."""
    palette = bytes(range(256)) * 4
    file = struct.pack('<IHHI', 54 + len(palette) + len(body), 0, 0, 54 + len(palette))
    info = struct.pack('<IiiHHIIiiII', 40, width, height, 1, 8, compression, len(body), 0, 0, 256, 0)
    return b'BM' + file + info + palette + body


def ico(frames):
    """An ICO of (width, height, bytes)."""
    at, directory = 6 + 16 * len(frames), b''
    for width, height, data in frames:
        directory += struct.pack('<BBBBHHII', width % 256, height % 256, 0, 0, 1, 32, len(data), at)
        at += len(data)
    return struct.pack('<HHH', 0, 1, len(frames)) + directory + b''.join(data for _, _, data in frames)


def overlapping_tags(tags=65_000, size=1_000_000):
    """A small EXIF block whose every tag claims the same megabyte: gigabytes once they are read."""
    return tiff([(tag, 7, size, 0) for tag in range(300, 300 + tags)]) + bytes(size)


def many_scans(scans, size=(2_000, 2_000)):
    """A progressive JPEG whose last scan, of a few bytes, comes again and again."""
    data = encode(Image.new('L', size, 77), 'JPEG', progressive=True)
    last = data[data.rindex(b'\xff\xda') : -2]
    return data[:-2] + last * scans + b'\xff\xd9'


def large_pictures():
    """Bombs by pixels, (name, bytes): some beyond the limits, some just below, which must stay cheap."""
    yield 'huge.png', blank_png(HUGE, HUGE)
    yield 'colour.png', blank_png(10_000, 10_000, colour=2)
    yield 'alpha.png', blank_png(10_000, 10_000, colour=6)
    yield 'wide.png', blank_png(70_000, 10)
    yield 'grey16.png', encode(Image.fromarray(np.full((10_000, 10_000), 1000, np.uint16)), 'PNG')
    yield 'huge.gif', encode(Image.new('P', (10_000, 10_000)), 'GIF')
    yield 'huge.tif', encode(Image.new('CMYK', (9_000, 9_000)), 'TIFF', compression='tiff_adobe_deflate')
    yield 'huge.jpg', encode(Image.new('RGB', (10_000, 10_000)), 'JPEG', progressive=True)
    for format_ in ('JPEG2000', 'WEBP', 'AVIF'):
        if features.check(OPTIONAL[format_]):
            for side in (4_900, 8_000):  # one within the limit of its format
                options = {'speed': 10} if format_ == 'AVIF' else {}
                yield f'{side}.{format_.lower()[:4]}', encode(Image.new('RGB', (side, side)), format_, **options)


def tricks(photo):
    """Files that lie or are no pictures, (name, bytes)."""
    small = encode(photo.convert('RGB').resize((32, 32)), 'JPEG')
    zeros = zlib.compress(bytes(200 << 20), 9)  # 200 kB
    yield 'text.png', blank_png(8, 8, (b'zTXt', b'Comment\0\0' + zeros))
    yield 'itxt.png', blank_png(8, 8, (b'iTXt', b'XML:com.adobe.xmp\0\1\0\0\0' + zeros))
    yield 'icc.png', blank_png(8, 8, (b'iCCP', b'profile\0\0' + zeros))
    yield 'many-texts.png', blank_png(8, 8, *[(b'zTXt', b'a\0\0' + zlib.compress(bytes(900_000), 9))] * 200)
    yield 'pixels.png', png(8, 8, [(b'IDAT', zeros)])
    yield 'chunks.png', blank_png(8, 8, *[(b'prVt', b'')] * 100_000)
    yield 'no-pixels.png', png(100, 100, [])
    yield 'frames.gif', encode(photo.convert('P'), 'GIF')[:-1] + many_frames(5_000)
    yield 'endless.gif', encode(photo.convert('P'), 'GIF')[:-1] + many_frames(100)[:-7]
    yield 'comments.gif', commented_gif(400_000)
    yield 'frames.apng', apng(3_000)
    yield 'runs.bmp', bmp(65_535, 1_500, b'\1\1' + b'\0\0' * 1_000)
    yield 'jumps.bmp', bmp(20_000_000, 1, b'\0\2\xff\xff' * 9)
    yield 'text.ppm', b'P3 3000 3000 255\n' + b'1 ' * 100_000
    yield 'odd.ppm', b'P6 60000 1600 254\n' + bytes(100)
    yield 'loop.tif', tiff_image(next_=8)
    yield 'far.tif', tiff_image(next_=0xFFFFFFF0)
    yield 'strips.tif', tiff_image(t278=0, t279=0xFFFFFFFF)
    yield 'no-strips.tif', tiff_image(t273=0xFFFFFFFF)
    yield 'float.tif', encode(Image.new('F', (8, 8), 0.5), 'TIFF')
    yield 'samples.tif', tiff_image(t277=65_535)
    yield 'tile.tif', tiff_image(more=[(322, 4, 1, 0xFFFFFF), (323, 4, 1, 0xFFFFFF), (324, 4, 1, 8)])
    yield 'tags.tif', overlapping_tags()
    yield 'self.tif', tiff_image(more=[(0x8769, 4, 1, 8), (0x014A, 4, 1, 8)])
    yield 'scans.jpg', many_scans(3_000)
    for value in (0, 9, 0xFFFF):
        yield f'orientation-{value}.jpg', jpeg_with(b'Exif\0\0' + tiff([(0x0112, 3, 1, value)]), small)
    for name, entries in {
        'text': [(0x0112, 2, 4, 0x20202020)],
        'count': [(0x0112, 3, 0xFFFFFFFF, 6)],
        'loop': [(0x0112, 3, 1, 3), (0x8769, 4, 1, 8), (0x8825, 4, 1, 8), (0xA005, 4, 1, 8)],
        'tags': [(tag, 7, 60_000, 0) for tag in range(5_000)],
    }.items():
        yield f'exif-{name}.jpg', jpeg_with(b'Exif\0\0' + tiff(entries, next_=8), small)
    yield 'exif-cut.jpg', jpeg_with(b'Exif\0\0II*\0\xff', small)
    yield 'exif-length.jpg', small[:2] + b'\xff\xe1\xff\xff' + small[2:]
    yield 'exif-many.jpg', small[:2] + b'\xff\xe1\x00\x09Exif\0\0x' * 100_000 + small[2:]
    yield 'exif-tags.png', blank_png(8, 8, (b'eXIf', overlapping_tags()))
    frame = struct.pack('<IiiHHIIiiII', 40, 40_000, 40_000, 1, 8, 1, 0, 0, 0, 256, 0) + bytes(2_000)
    yield 'bmp.ico', ico([(0, 0, frame)])
    yield 'png.ico', ico([(16, 16, blank_png(9_000, 9_000))])
    yield 'ico.ico', ico([(16, 16, ico([(16, 16, blank_png(16, 16))]))])
    yield 'many.ico', ico([(16, 16, blank_png(16, 16))] * 2_000)
    yield 'empty.jpg', b''
    yield 'page.jpg', b'<html><body>404 Not Found</body></html>'
    yield 'drawing.png', b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    yield 'words.webp', b'no picture at all\n' * 1_000
    yield 'script.gif', b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (w) file\n'
    yield 'archive.bmp', b'PK\3\4' + bytes(1_000)
    yield 'zeros.tif', bytes(100_000)


def many_frames(count):
    """Frames of one pixel, and the end of a GIF."""
    return (b'!\xf9\4\0\1\0\0\0' + b',\0\0\0\0\1\0\1\0\0' + b'\2\2D\1\0') * count + b';'


def commented_gif(blocks):
    """A GIF with one comment of many pieces of a byte each before its frame."""
    data = encode(Image.new('P', (8, 8)), 'GIF')
    palette = 13 + (3 << (data[10] & 7) + 1)
    return data[:palette] + b'!\xfe' + b'\1a' * blocks + b'\0' + data[palette:]


def apng(frames):
    """An APNG of many frames of one pixel."""
    pixel = zlib.compress(bytes(2))
    control = [
        (b'acTL', struct.pack('>II', frames, 0)),
        (b'fcTL', struct.pack('>IIIIIHHBB', 0, 1, 1, 0, 0, 1, 9, 0, 0)),
    ]
    chunks = [*control, (b'IDAT', pixel)]
    for number in range(1, frames):
        chunks.append((b'fcTL', struct.pack('>IIIIIHHBB', 2 * number - 1, 1, 1, 0, 0, 1, 9, 0, 0)))
        chunks.append((b'fdAT', struct.pack('>I', 2 * number) + pixel))
    return png(1, 1, chunks, colour=0)


def hostile_pictures(photo, mutations=2_000, seed=5):
    """All of them, (name, bytes), the names different."""
    yield from mutated(list(real_pictures(photo)), mutations, seed)
    yield from (('large-' + name, data) for name, data in large_pictures())
    yield from (('trick-' + name, data) for name, data in tricks(photo))
