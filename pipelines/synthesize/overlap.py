"""How much the classes overlap for simple methods: single features, and k-means on hand-made features."""

import numpy as np
import numpy.typing as npt
from scipy import optimize, signal, stats
from sklearn.cluster import KMeans
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from pipelines.synthesize.noise import SIGNAL_BAND_HZ

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

FEATURES = (
    "duration",
    "dominant frequency",
    "peak",
    "STA/LTA ratio",
    "centroid frequency",
    "bandwidth",
    "spectral entropy",
    "share 1-3 Hz",
    "share 3-7 Hz",
    "share 7-14 Hz",
    "rise time",
    "kurtosis",
    "envelope skewness",
    "zero crossings",
    "horizontal to vertical",
    "rectilinearity",
)
SIMPLE_FEATURES = FEATURES[:4]


def hand_features(waveforms: npt.NDArray[np.float32], rate_hz: int, lead_seconds: float = 5.0) -> Array:
    """Return FEATURES of windows (window, 3, sample), components E, N, Z, as (window, 16).

    All are taken after a band-pass of SIGNAL_BAND_HZ, from the component with the most energy where one is
    needed. Duration is the time from the first to the last instant at which the smoothed envelope is above its noise;
    features of shape and spectrum are those of that time, at least 1.5 s. Duration, frequencies, peak, ratios and
    kurtosis are logarithms.
    """
    low, high = SIGNAL_BAND_HZ
    sos = signal.butter(4, (low, min(high, 0.45 * rate_hz)), "bandpass", fs=rate_hz, output="sos")
    centred = waveforms - waveforms.mean(axis=-1, keepdims=True)
    passed = signal.sosfiltfilt(sos, centred, axis=-1)
    return np.array([_features(window, rate_hz, lead_seconds) for window in passed])


def single_feature_accuracy(feature: Array, labels: Labels, *, seed: int = 0) -> float:
    """Return the cross-validated balanced accuracy of the best thresholds on one feature, (window,)."""
    tree = DecisionTreeClassifier(max_leaf_nodes=12, min_samples_leaf=5, class_weight="balanced", random_state=seed)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    predicted = cross_val_predict(tree, feature[:, None], labels, cv=folds)
    return float(np.mean([(predicted[labels == label] == label).mean() for label in np.unique(labels)]))


def single_threshold_accuracy(feature: Array, labels: Labels) -> float:
    """Return the best balanced accuracy of one threshold that separates one class from the rest."""
    order = np.argsort(feature, kind="stable")
    best = 0.5
    for label in np.unique(labels):
        inside = labels[order] == label
        rates = np.cumsum(inside) / inside.sum(), np.cumsum(~inside) / (~inside).sum()
        best = max(best, float(0.5 + 0.5 * np.abs(rates[0] - rates[1]).max()))
    return best


def hungarian_accuracy(clusters: Labels, labels: Labels) -> float:
    """Return the share of windows in their class's cluster under the best one-to-one matching."""
    table = np.zeros((clusters.max() + 1, labels.max() + 1))
    np.add.at(table, (clusters, labels), 1)
    matched = optimize.linear_sum_assignment(table, maximize=True)
    return float(table[matched].sum() / labels.size)


def kmeans_accuracy(features: Array, labels: Labels, *, seed: int = 0) -> float:
    """Return the Hungarian accuracy of k-means on standardised features, k = number of classes."""
    model = KMeans(int(labels.max()) + 1, n_init=20, random_state=seed)
    clusters = model.fit_predict(StandardScaler().fit_transform(features))
    return hungarian_accuracy(np.asarray(clusters, np.int64), labels)


def _features(window: Array, rate_hz: int, lead_seconds: float) -> Array:
    energy = (window**2).sum(axis=1)
    trace = window[int(energy.argmax())]
    lead = max(int((lead_seconds - 0.5) * rate_hz), rate_hz)
    noise_rms = float(np.sqrt(np.mean(trace[:lead] ** 2))) + 1e-12
    smooth = np.ones(rate_hz // 2) / (rate_hz // 2)
    envelope = np.sqrt(np.convolve(trace**2, smooth, "same"))
    threshold = max(2 * noise_rms, 0.2 * float(envelope.max()))
    above = np.flatnonzero(envelope[lead:] > threshold)
    duration = (above[-1] - above[0]) / rate_hz if above.size else 0.0
    start = lead + (int(above[0]) if above.size else 0)
    event = window[:, start : start + max(int(duration * rate_hz), int(1.5 * rate_hz))]
    strongest = event[int(energy.argmax())]
    size = int(2.56 * rate_hz)
    frequency, psd = signal.periodogram(strongest, rate_hz, nfft=max(size, strongest.size))
    grid = np.arange(1.0, 20.0, 0.4)
    psd = np.interp(grid, frequency, np.convolve(psd, np.ones(5) / 5, "same")) + 1e-12
    frequency = grid
    share = psd / psd.sum()
    centroid = float((frequency * share).sum())
    covariance_matrix = np.cov(event)
    covariance = np.linalg.eigvalsh(covariance_matrix)
    peak = int(np.abs(trace).argmax())
    return np.array(
        [
            np.log(duration + 0.1),
            np.log(frequency[share.argmax()]),
            np.log(np.abs(trace).max() + 1e-12),
            np.log(float(envelope.max()) ** 2 / noise_rms**2),
            np.log(centroid),
            np.sqrt(((frequency - centroid) ** 2 * share).sum()),
            -(share * np.log(share + 1e-12)).sum(),
            share[frequency < 3].sum(),
            share[(frequency >= 3) & (frequency < 7)].sum(),
            share[(frequency >= 7) & (frequency < 14)].sum(),
            max(peak - lead, 0) / rate_hz,
            np.log(float(stats.kurtosis(strongest, fisher=False))),
            float(stats.skew(envelope[start : start + event.shape[1]])),
            np.count_nonzero(np.diff(np.signbit(strongest))) / strongest.size,
            np.log((covariance_matrix[0, 0] + covariance_matrix[1, 1] + 1e-12) / (2 * covariance_matrix[2, 2] + 1e-12)),
            1 - (covariance[0] + covariance[1]) / (2 * covariance[2] + 1e-12),
        ]
    )
