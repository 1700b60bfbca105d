"""`grainhash train`, `features` and `calibrate`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pipelines.cli.logs import tell, tell_report
from pipelines.inputs.options import ReadOptions


def train(args: argparse.Namespace, _: Sequence[str]) -> None:
    """Fit a hash model and save it."""
    from pipelines.training.train_model import TrainRequest, train_model

    request = TrainRequest(
        model=args.model,
        images=args.images or (),
        features=args.features,
        method=args.method,
        segments=args.segments,
        input_size=args.input_size,
        resize=args.resize,
        backbone=args.backbone,
        max_images=args.max_images,
        seed=args.seed,
        epochs=args.epochs,
        learning_rate=args.learning_rate,
        views=args.views,
        balance=args.balance,
        decorrelation=args.decorrelation,
        finetune_blocks=args.finetune_blocks,
        finetune_epochs=args.finetune_epochs,
        tensorboard=args.tensorboard,
        read=read_options(args),
    )
    tell_report(train_model(request, tell), args.json)


def features(args: argparse.Namespace, beam_args: Sequence[str]) -> None:
    """Make the features of images and keep them in files."""
    from pipelines.training.make_features import FeaturesRequest, make_features

    request = FeaturesRequest(
        images=args.images,
        output=args.output,
        segments=args.segments,
        input_size=args.input_size,
        resize=args.resize,
        backbone=args.backbone,
        views=args.views,
        seed=args.seed,
        read=read_options(args),
    )
    tell_report(make_features(request, beam_args), args.json)


def calibrate(args: argparse.Namespace, beam_args: Sequence[str]) -> None:
    """Move thresholds of a model to the middle of a catalogue, and save it as another model."""
    from pipelines.training.calibrate_model import CalibrateRequest, calibrate_model

    request = CalibrateRequest(args.model, args.images, args.output, args.segments, read_options(args))
    tell_report(calibrate_model(request, beam_args), args.json)


def read_options(args: argparse.Namespace) -> ReadOptions:
    """Which column, feature or key holds what."""
    labels = tuple(name.strip() for name in (args.labels or '').split(',') if name.strip())
    return ReadOptions(args.image_field, args.id_field, args.caption_field, labels, args.labels_from)
