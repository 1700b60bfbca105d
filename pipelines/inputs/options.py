"""How records are read: which column, key or feature of a shard holds what."""

from __future__ import annotations

import dataclasses

from hashing_model.errors import InputError


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """Which column, key or feature of a shard holds what; None takes the format's usual names.

    Args:
        image: the image: a Parquet column, a feature of `tf.train.Example`, or a suffix within tar shards.
        image_id: the id: a column, a feature, or a key of a tar shard's json members.
        caption: the caption: likewise.
        labels: label levels, coarse first; each is the column, feature or json key of its name.
        labels_from: `folders` takes the names of the folders between the pattern's folder and an image file as labels,
            at the levels that `labels` names, or `coarse` and `fine`.

    Raises:
        InputError: an unknown `labels_from`, or a label level given twice.
    """

    image: str | None = None
    image_id: str | None = None
    caption: str | None = None
    labels: tuple[str, ...] = ()
    labels_from: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, 'labels', tuple(self.labels))
        if self.labels_from not in (None, 'folders'):
            raise InputError(f"labels can be taken from 'folders', not from {self.labels_from!r}")
        if len(set(self.labels)) < len(self.labels):
            raise InputError(f'label levels repeat: {", ".join(self.labels)}')

    def refuse(self, why: str) -> None:
        """Refuse to be told how images are read where none are.

        Raises:
            InputError: an option is given; the message names it, and says why.
        """
        options = {
            '--labels': self.labels,
            '--labels-from': self.labels_from,
            '--image-field': self.image,
            '--id-field': self.image_id,
            '--caption-field': self.caption,
        }
        for name, value in options.items():
            if value:
                raise InputError(f'{name} {why}')
