"""Codes, and features to learn codes from, with labels."""

import numpy as np

from hashing_model.codes.bits import pack_bits
from hashing_model.codes.spec import CodeSpec, Segment
from hashing_model.evaluation.evaluate import CodedImages, label_levels
from hashing_model.evaluation.metrics import average_precision
from hashing_model.evaluation.ranking import rank
from hashing_model.labels import LabelLevel
from tests.helpers.make_index import make_codes

CODED = CodeSpec.parse('coarse=5,fine=9,look=12')
LEARNED = CodeSpec(
    (Segment('coarse', 16, ('top',)), Segment('fine', 16, ('top', 'color')), Segment('look', 8, ('color',)))
)
KINDS, CHILDREN, MEMBERS = 3, 3, 60


def some_labels(count, seed=0):
    """Coarse of 3 kinds, fine of 2 per kind, sometimes no fine; a tag on some, sometimes two."""
    rng = np.random.default_rng(seed)
    found = []
    for kind, part, tags in zip(
        rng.integers(3, size=count), rng.random(count), rng.integers(4, size=count), strict=True
    ):
        labels = {'tag': [f't{t}' for t in range(tags)][1:], 'coarse': [f'k{kind}']}
        if part < 0.8:
            labels['fine'] = [f'k{kind}-{int(part < 0.4)}']
        found.append(labels)
    return found


def images_of(codes, labels, name='i'):
    return CodedImages(codes, [f'{name}{n}' for n in range(len(codes))], labels)


def two_sides(queries, database, spec, seed=0):
    """Queries and database of clustered codes with labels."""
    codes = make_codes('clustered', queries + database, spec, seed)
    labels = some_labels(queries + database, seed)
    asking, asked = label_levels(labels[:queries], labels[queries:])
    return images_of(codes[:queries], asking, 'q'), images_of(codes[queries:], asked)


def values_of(classes):
    return [[str(c)] for c in classes]


def dataset(seed=0, members=MEMBERS):
    """Nine classes of three kinds: fused groups, and labels. `top` tells the kind and the class in few directions."""
    rng = np.random.default_rng(99)
    kinds, classes = rng.standard_normal((KINDS, 6)), rng.standard_normal((KINDS * CHILDREN, 6))
    axes = np.linalg.qr(rng.standard_normal((24, 24)))[0]
    colors = rng.standard_normal((KINDS * CHILDREN, 4))
    rng = np.random.default_rng(seed)
    fine = rng.permutation(np.repeat(np.arange(KINDS * CHILDREN), members))
    coarse = fine // CHILDREN
    signal = np.hstack([kinds[coarse], classes[fine]]) + 0.3 * rng.standard_normal((len(fine), 12))
    top = np.hstack([signal, 3 * rng.standard_normal((len(fine), 12))]) @ axes / 5
    color = (colors[fine] + rng.standard_normal((len(fine), 4))) / 2
    fused = {'top': top.astype(np.float32), 'color': color.astype(np.float32)}
    names = [str(i) for i in range(KINDS * CHILDREN)]
    labels = {
        'coarse': LabelLevel.from_values(values_of(coarse), names[:KINDS]),
        'fine': LabelLevel.from_values(values_of(fine), names),
    }
    return fused, labels


def vectors(segment, fused):
    return np.concatenate([fused[name] for name in segment.features], axis=1)


def mean_average_precision(head, segment, fused, level):
    codes = pack_bits(head.bits(vectors(segment, fused)))
    ranking = rank(codes, [level], codes, [level], CodeSpec((segment,)), leave_out=np.arange(len(codes)))
    return average_precision(ranking.totals, ranking.relevant).mean()
