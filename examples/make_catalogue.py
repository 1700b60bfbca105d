"""Makes the example catalogue: emoji pictures of three artists as WebDataset shards.

Here lives how `examples/catalogue/` came to be: which pictures are taken from which npm package, how they
are named, labelled, scaled and packed. Fluent and Google pictures form the shards to index, Twitter's the
shards that ask, so a query always meets the same things drawn by another hand. The licences are in `NOTICE`.

The same packages, Pillow and zlib give the same bytes. Run it with:

    python examples/make_catalogue.py --out examples/catalogue
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

METADATA_PACKAGE = 'emoji-datasource@16.0.0'
LEFT_OUT_CATEGORIES = frozenset({'Flags', 'Component'})
MIN_ITEMS_PER_SUBCATEGORY = 5
MAX_SIDE = 96
# All pictures take about 9 MB at this quality; lossless WebP would take 19 MB and PNG 26 MB.
WEBP_QUALITY = 85
SHARDS_PER_STYLE = 4
MAX_BYTES = 12_000_000

Emoji = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """One artist's pictures: where they are and whether they are indexed or ask."""

    style: str
    role: str
    package: str
    folder: str
    extension: str

    def picture_path(self, emoji: Emoji) -> str:
        """Returns the path of an emoji's picture inside the package."""
        return f'{self.folder}/{item_key(emoji)}.{self.extension}'


SOURCES = (
    Source('fluent', 'index', '@lobehub/fluent-emoji-3d@1.1.0', 'package/assets', 'webp'),
    Source('google', 'index', 'emoji-datasource-google@16.0.0', 'package/img/google/64', 'png'),
    Source('twitter', 'query', 'emoji-datasource-twitter@16.0.0', 'package/img/twitter/64', 'png'),
)


@dataclass(frozen=True)
class Record:
    """One picture of the catalogue with the fields of its `.json` member."""

    style: str
    emoji: Emoji
    image: bytes

    @property
    def id(self) -> str:
        """The record's id, which is also its WebDataset key: `fluent/1f600`."""
        return f'{self.style}/{item_key(self.emoji)}'

    def to_json(self) -> bytes:
        """Returns the bytes of the `.json` member."""
        fields = {
            'id': self.id,
            'labels': {
                'coarse': self.emoji['category'],
                'fine': self.emoji['subcategory'],
                'item': item_key(self.emoji),
            },
            'caption': self.emoji['name'].lower(),
            'style': self.style,
        }
        return json.dumps(fields, ensure_ascii=False).encode()


def item_key(emoji: Emoji) -> str:
    """Returns the key that all drawings of an emoji share.

    >>> item_key({'unified': '1F9D1-200D-1F52C'})
    '1f9d1-200d-1f52c'
    """
    return emoji['unified'].lower()


def tarball_name(package: str) -> str:
    """Returns the file name that `npm pack` gives to a package.

    >>> tarball_name('@lobehub/fluent-emoji-3d@1.1.0')
    'lobehub-fluent-emoji-3d-1.1.0.tgz'
    """
    name, version = package.rsplit('@', 1)
    return f'{name.lstrip("@").replace("/", "-")}-{version}.tgz'


def fetch_packages(folder: Path) -> None:
    """Downloads the tarballs of all packages into a folder."""
    packages = [METADATA_PACKAGE, *(source.package for source in SOURCES)]
    subprocess.run(['npm', 'pack', '--silent', '--pack-destination', str(folder), *packages], check=True)


def read_members(tarball: Path, paths: Iterable[str]) -> dict[str, bytes]:
    """Reads the named members of a tarball in one pass; absent ones are left out."""
    wanted = set(paths)
    with tarfile.open(tarball) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.name in wanted}


def select_emoji(all_emoji: Iterable[Emoji]) -> list[Emoji]:
    """Keeps the emoji of the catalogue: no flags or components, no tiny subcategories."""
    kept = [emoji for emoji in all_emoji if emoji['category'] not in LEFT_OUT_CATEGORIES]
    sizes = Counter(emoji['subcategory'] for emoji in kept)
    return [emoji for emoji in kept if sizes[emoji['subcategory']] >= MIN_ITEMS_PER_SUBCATEGORY]


def load_emoji(packages: Path) -> list[Emoji]:
    """Reads names and categories of the emoji of the catalogue."""
    path = 'package/emoji.json'
    return select_emoji(json.loads(read_members(packages / tarball_name(METADATA_PACKAGE), [path])[path]))


def encode_picture(data: bytes) -> bytes:
    """Scales a picture down to `MAX_SIDE`, never up, and encodes it as WebP with its transparency."""
    with Image.open(io.BytesIO(data)) as opened:
        image = opened.convert('RGBA')
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    image.save(encoded, 'WEBP', quality=WEBP_QUALITY, method=6)
    return encoded.getvalue()


def load_records(packages: Path, source: Source, emoji: Sequence[Emoji]) -> list[Record]:
    """Reads one artist's records, in the order in which they are packed.

    The order is that of the ids' digests: as good as a shuffle, so that every shard is a sample of the
    catalogue, and the same on every version of Python.
    """
    by_path = {source.picture_path(each): each for each in emoji}
    pictures = read_members(packages / tarball_name(source.package), by_path)
    records = [Record(source.style, by_path[path], encode_picture(data)) for path, data in pictures.items()]
    return sorted(records, key=lambda record: hashlib.sha256(record.id.encode()).digest())


def pack_shard(members: Iterable[tuple[str, bytes]]) -> bytes:
    """Packs named members as a tar whose bytes depend on nothing else."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode='w', format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return packed.getvalue()


def shard_members(records: Iterable[Record]) -> Iterator[tuple[str, bytes]]:
    """Yields the picture and the fields of each record under the same key."""
    for record in records:
        yield f'{record.id}.webp', record.image
        yield f'{record.id}.json', record.to_json()


def write_shards(out: Path, source: Source, records: Sequence[Record]) -> None:
    """Writes one artist's records as shards of nearly equal length."""
    for number in range(SHARDS_PER_STYLE):
        start, stop = (len(records) * each // SHARDS_PER_STYLE for each in (number, number + 1))
        shard = pack_shard(shard_members(records[start:stop]))
        # Headers and padding of tar are nearly as large as the pictures; gzip takes them away.
        compressed = gzip.compress(shard, compresslevel=9, mtime=0)
        (out / f'{source.role}-{source.style}-{number:05d}.tar.gz').write_bytes(compressed)


def make_catalogue(packages: Path, out: Path) -> list[Record]:
    """Writes the shards of all artists and returns their records."""
    out.mkdir(parents=True, exist_ok=True)
    emoji = load_emoji(packages)
    everything = []
    for source in SOURCES:
        records = load_records(packages, source, emoji)
        write_shards(out, source, records)
        everything += records
    return everything


def counts_table(records: Sequence[Record]) -> str:
    """Returns a Markdown table of the pictures per category and style."""
    styles = [source.style for source in SOURCES]
    counts = Counter((record.emoji['category'], record.style) for record in records)
    rows = [
        [category, *(counts[category, style] for style in styles)]
        for category in sorted({category for category, _ in counts})
    ]
    totals = ['all', *(sum(record.style == style for record in records) for style in styles)]
    table = [['category', *styles], ['---', *('---:' for _ in styles)], *rows, totals]
    return '\n'.join(f'| {" | ".join(map(str, row))} |' for row in table)


def check_size(out: Path) -> int:
    """Returns the bytes of all shards, or fails when they exceed the limit."""
    size = sum(shard.stat().st_size for shard in out.glob('*.tar.gz'))
    if size > MAX_BYTES:
        raise ValueError(f'catalogue has {size:,} bytes, limit is {MAX_BYTES:,}: out={out}')
    return size


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description='Makes the example catalogue of emoji pictures.')
    parser.add_argument(
        '--out',
        type=Path,
        default=Path(__file__).parent / 'catalogue',
        help='folder of the shards (%(default)s)',
    )
    parser.add_argument(
        '--packages',
        type=Path,
        help='folder with the npm tarballs; without it they are downloaded with npm pack',
    )
    return parser.parse_args()


def main() -> None:
    """Makes the catalogue, then prints what it holds."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as downloads:
        if arguments.packages is None:
            fetch_packages(Path(downloads))
        records = make_catalogue(arguments.packages or Path(downloads), arguments.out)
    print(counts_table(records))
    items = {item_key(record.emoji) for record in records}
    fine = {record.emoji['subcategory'] for record in records}
    print(f'\n{len(items)} items in {len(fine)} subcategories, {len(records)} pictures')
    print(f'{check_size(arguments.out):,} bytes in {arguments.out}')


if __name__ == '__main__':
    main()
