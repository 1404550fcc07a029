"""Labels carried from events with a hand label to the others: multinomial logistic regression with a calibrated answer.

Legend: n events, d dimensions of the space of the clustering, c classes.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression

from pipelines.label.kernels import one_thread_per_pool
from pipelines.metrics.evaluation import Labels

STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Tried inverses of the regularisation (scikit-learn's C)."""

MIN_LABELS = 10
"""Fewest labelled events that a classifier is fitted to."""

NUM_FOLDS = 5

DOUBT = 0.5
"""Answers that are taken to be wrong, beside those that are, when the temperature is fitted: half an error, as
Jeffreys' prior has it. Without it, a few labels that happen to be told apart would make every answer certain."""

_TEMPERATURES = (0.05, 50.0)
_NEVER = -50.0
"""The logit of a class that a fold has not seen."""


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A fitted classifier.

    Attributes:
        classes: (c,), sorted.
        mean, scale: (d,), by which points are standardised.
        weights: (d, c).
        intercepts: (c,).
        strength: the chosen inverse of the regularisation.
        temperature: by which logits are divided.
        num_labels: events that it was fitted to.
    """

    classes: tuple[str, ...]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    weights: NDArray[np.float64]
    intercepts: NDArray[np.float64]
    strength: float
    temperature: float
    num_labels: int


def standardisation(points: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean (d,) and the scale (d,) of points (n, d) with or without label.

    The scale is the same in all dimensions, the root of their mean variance (1 where all points are equal): a dimension
    in which events differ much keeps its weight, which the clusters give it, too.
    """
    rows = points.astype(np.float64)
    spread = float(np.sqrt(rows.var(axis=0).mean()))
    return rows.mean(axis=0), np.full(rows.shape[1], spread if spread > 0 else 1.0)


def too_few(labels: Labels, events: Labels) -> str | None:
    """Return why a classifier cannot be fitted to these labels (n,) of events (n,), in words; None where it can.

    It takes two classes of two events each, so that each can be told by a classifier which has not seen it, and
    MIN_LABELS labels.
    """
    names, groups = np.asarray(labels, dtype=str), np.asarray(events, dtype=str)
    classes = np.unique(names).tolist()
    if len(classes) < 2:
        return f"they are of {'one class only' if classes else 'no class'}"
    if sum(len(np.unique(groups[names == name])) > 1 for name in classes) < 2:
        return "fewer than two classes have two labelled events"
    if len(names) < MIN_LABELS:
        return f"they are {len(names)}, fewer than {MIN_LABELS}"
    return None


def fit_classifier(
    points: NDArray[Any],
    labels: Labels,
    events: Labels,
    mean: NDArray[np.float64],
    scale: NDArray[np.float64],
) -> Classifier:
    """Fit a classifier to labelled points; the same input gives the same bits.

    Each of STRENGTHS is judged by its answers to the events of five folds, each answered by a fit to the others: by the
    cross-entropy at the best temperature, which is that of the result, too (Guo et al. 2017). The classes are
    spread evenly over the folds, and the triggers of one event are in one fold.

    Args:
        points: (n, d).
        labels: (n,), not too few.
        events: (n,), name of the associated event that each belongs to.
        mean, scale: (d,), of the standardisation.
    """
    x = (points.astype(np.float64) - mean) / scale
    classes, codes = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    folds = _folds(codes, events)
    best: tuple[float, float, float] | None = None
    with one_thread_per_pool():
        for strength in STRENGTHS:
            logits, told = np.full((len(x), len(classes)), _NEVER), np.zeros(len(x), dtype=bool)
            for fold in np.unique(folds):
                learn, answer = folds != fold, folds == fold
                seen = np.unique(codes[learn])
                if len(seen) > 1:
                    weights, intercepts = _fit(x[learn], codes[learn], strength)
                    logits[np.ix_(answer, seen)] = x[answer] @ weights + intercepts
                    told[answer] = np.isin(codes[answer], seen)
            entropy, temperature = _calibrate(logits[told], codes[told])
            # A weaker regularisation has to be better by more than rounding.
            if best is None or entropy < best[0] - 1e-9:
                best = entropy, strength, temperature
        assert best is not None
        _, strength, temperature = best
        weights, intercepts = _fit(x, codes, strength)
    return Classifier(
        classes=tuple(classes.tolist()),
        mean=mean,
        scale=scale,
        weights=weights,
        intercepts=intercepts,
        strength=strength,
        temperature=temperature,
        num_labels=len(x),
    )


def classify(classifier: Classifier, points: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the class (its index) of points (n, d) and its calibrated probability, (n,) each."""
    with one_thread_per_pool():
        x = (points.astype(np.float64) - classifier.mean) / classifier.scale
        shares = softmax((x @ classifier.weights + classifier.intercepts) / classifier.temperature, axis=1)
    codes = shares.argmax(axis=1)
    return codes, shares[np.arange(len(codes)), codes].astype(np.float32)


def _fit(
    x: NDArray[np.float64], codes: NDArray[np.integer], strength: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weights (d, seen classes) and intercepts (seen classes,)."""
    model = LogisticRegression(C=strength, max_iter=1000).fit(x, codes)
    if len(model.classes_) > 2:
        return model.coef_.T, model.intercept_
    # Of two classes scikit-learn gives the difference of the logits.
    return np.stack([-model.coef_[0], model.coef_[0]], axis=1) / 2, np.array([-1.0, 1.0]) * model.intercept_[0] / 2


def _folds(codes: NDArray[np.integer], events: Labels) -> NDArray[np.int64]:
    """Return the fold of each event (n,): by a hash of its name, in turn, class after class."""
    names, first, inverse = np.unique(np.asarray(events, dtype=str), return_index=True, return_inverse=True)
    hashes = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names.tolist()]
    order = sorted(range(len(names)), key=lambda number: (int(codes[first[number]]), hashes[number]))
    fold_of = np.empty(len(names), dtype=np.int64)
    fold_of[order] = np.arange(len(names)) % NUM_FOLDS
    return fold_of[inverse]


def _calibrate(logits: NDArray[np.float64], codes: NDArray[np.integer]) -> tuple[float, float]:
    """Return the least cross-entropy of answers (n, c) to events of classes (n,), and the temperature that gives it."""
    num_rows, num_classes = logits.shape
    doubt = DOUBT / (num_rows + 2 * DOUBT)
    target = np.full(logits.shape, doubt / (num_classes - 1))
    target[np.arange(num_rows), codes] = 1.0 - doubt

    def entropy(log_temperature: float) -> float:
        return float(-(target * log_softmax(logits / np.exp(log_temperature), axis=1)).sum() / num_rows)

    found = minimize_scalar(entropy, bounds=tuple(np.log(_TEMPERATURES)), method="bounded")
    return float(found.fun), float(np.exp(found.x))
