"""The progress of a training, and what is reported when it has ended."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rich.progress
from rich.console import Console

from hashing_model.model import HashModel
from hashing_model.networks.loop import Progress
from pipelines import files
from pipelines.reports import plots

TRAINING_FILE = 'training.json'
CURVES_FILE = 'training.png'


class TrainingLog:
    """Shows how far a training is, and writes TensorBoard logs if wanted.

    Args:
        console: where the progress bar goes.
        tensorboard: a folder for the logs.
    """

    def __init__(self, console: Console, tensorboard: str | None = None) -> None:
        self._bar = rich.progress.Progress(
            '{task.description}',
            rich.progress.BarColumn(),
            rich.progress.TimeRemainingColumn(compact=True),
            '{task.fields[figures]}',
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, rich.progress.TaskID] = {}
        self._folder = tensorboard
        self._writer: Any = None

    def __enter__(self) -> TrainingLog:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        if self._writer:
            self._writer.close()

    def report(self, progress: Progress) -> None:
        """Take note of a step."""
        figures = [f'loss {progress.loss:.3f}'] if progress.loss is not None else []
        figures += [f'validation mAP {progress.score:.3f}'] if progress.score is not None else []
        if progress.stage not in self._tasks:
            self._tasks[progress.stage] = self._bar.add_task(progress.stage, total=progress.steps, figures='')
        self._bar.update(self._tasks[progress.stage], completed=progress.step, figures=', '.join(figures))
        if self._folder and progress.loss is not None:
            self._write(progress)

    def _write(self, progress: Progress) -> None:
        import tensorflow as tf

        self._writer = self._writer or tf.summary.create_file_writer(self._folder)
        with self._writer.as_default():
            scalar = tf.compat.v1.SummaryMetadata()  # tf.summary.scalar itself needs the package tensorboard
            scalar.plugin_data.plugin_name = 'scalars'
            for name, value in (('loss', progress.loss), ('validation mAP', progress.score)):
                if value is not None:
                    tf.summary.write(f'{progress.stage}/{name}', tf.constant(value), progress.step, scalar)


def write_training(folder: Path, model: HashModel, history: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Write `training.json`, and `training.png` with the curves if there are any, beside a model."""
    described = {**model.training, 'fingerprint': model.fingerprint, 'history': history}
    files.write_bytes(str(folder / TRAINING_FILE), json.dumps(described, indent=1).encode())
    (folder / CURVES_FILE).unlink(missing_ok=True)
    if history:
        files.write_bytes(str(folder / CURVES_FILE), plots.training_curves(history))


def describe_training(model: HashModel) -> list[str]:
    """A fit in words, one line each: images without labels, validation, what each segment reads."""
    about, lines = model.training, []
    for name, labelled in about.get('labelled', {}).items():
        if labelled < about['images']:
            missing = about['images'] - labelled
            lines.append(f'{missing:,} of {about["images"]:,} images have no label {name}: it did not learn from them')
    if about.get('hierarchy_order', 1) < 1:
        lines.append(
            f'target codes keep the order of the label levels in {about["hierarchy_order"]:.1%} of the cases: '
            'weigh the coarser segment more when you ask, or give it more bits'
        )
    for name in model.spec.names:
        score = about.get('validation_map', {}).get(name)
        held_out = '' if score is None else f'mAP {score:.3f} on images held out; '
        lines.append(f'{name}: {held_out}made of {describe_shares(about["shares"][name])}')
    if text := about.get('text'):
        lines.append(f'text: {text["words"]:,} words of the captions and labels of {text["images"]:,} images')
    return lines


def describe_shares(shares: Mapping[str, float]) -> str:
    """The shares of the feature groups in a segment, in words: `45 % top, 33 % high, 22 % mid`."""
    return ', '.join(f'{share:.0%} {name}'.replace('%', ' %') for name, share in shares.items())
