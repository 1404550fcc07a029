"""What happens where and when: stations, events, and their arrivals, day by day.

Each UTC day is divided into equal slots. A slot holds one event at a random time (or, for spikes, one per station), so
arrivals seldom overlap, and any day is planned without the days before it. An event belongs to the day of its slot;
its arrivals and codas continue into the next.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache

import numpy as np

from pipelines.config.synthesize import SynthesizeSettings
from pipelines.synthesize.noise import band_rms
from pipelines.synthesize.sources import (
    CLASSES,
    CRUST_P_KM_S,
    ICE_P_KM_S,
    ICE_RAYLEIGH_KM_S,
    LONGEST_SPIKE_SECONDS,
    LONGEST_TREMOR_SECONDS,
    SPIKE_KINDS,
    Ray,
    Streams,
    Waveform,
    earthquake,
    icequake,
    longest_earthquake_seconds,
    longest_icequake_seconds,
    scale_to_snr,
    spike,
    tremor,
)
from pipelines.synthesize.streams import Purpose, stream

DAY_NS = 86_400 * 1_000_000_000
LONGEST_SECONDS = 300.0
"""No arrival lasts longer, nor reaches a station later than this after its slot's day ends."""

_EPOCH = date(1970, 1, 1)
_ORIGIN_LATITUDE, _ORIGIN_LONGITUDE = -75.0, -10.0
_KM_A_DEGREE = 111.2
_SWARM_SECONDS = 4 * 3600
_TIDE_SECONDS = 12.4206 * 3600
_QUIET_AMPLITUDE = 0.02
"""Arrivals weaker than this share of the noise are not rendered."""


@dataclass(frozen=True, kw_only=True)
class Station:
    """A station; `x_km` east and `y_km` north of the network's origin."""

    network: str
    code: str
    latitude: float
    longitude: float
    elevation_m: float
    x_km: float
    y_km: float

    @property
    def name(self) -> str:
        """Return NETWORK.STATION."""
        return f"{self.network}.{self.code}"


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """An event at a station: everything that its waveform is made from."""

    event: str
    event_class: str
    kind: str
    source: str
    station: Station
    time_ns: int
    """Onset of the first arrival, ns since 1970-01-01 UTC."""
    snr: float
    ray: Ray
    magnitude: float
    """Local magnitude; NaN for tremor and spikes."""
    longest_seconds: float
    """No waveform of this arrival is longer."""


def day_number(day: date) -> int:
    """Return the days since 1970-01-01."""
    return (day - _EPOCH).days


def day_of(number: int) -> date:
    """Return the date of a day number."""
    return _EPOCH + timedelta(days=number)


@lru_cache(maxsize=8)
def stations(settings: SynthesizeSettings) -> tuple[Station, ...]:
    """Return the network: a spiral with some 5 km between neighbours, shifted at random."""
    placed = []
    for number in range(settings.num_stations):
        random = stream(settings.seed, Purpose.STATIONS, number)
        radius_km = 4.5 * np.sqrt(number)
        angle = np.deg2rad(137.508) * number
        x_km = float(radius_km * np.cos(angle) + random.uniform(-0.6, 0.6))
        y_km = float(radius_km * np.sin(angle) + random.uniform(-0.6, 0.6))
        latitude = _ORIGIN_LATITUDE + y_km / _KM_A_DEGREE
        longitude = _ORIGIN_LONGITUDE + x_km / (_KM_A_DEGREE * np.cos(np.deg2rad(_ORIGIN_LATITUDE)))
        placed.append(
            Station(
                network=settings.network,
                code=f"FL{number + 1:02d}",
                latitude=round(float(latitude), 6),
                longitude=round(float(longitude), 6),
                elevation_m=round(float(random.uniform(20, 60)), 1),
                x_km=x_km,
                y_km=y_km,
            )
        )
    return tuple(placed)


def truth_arrivals(settings: SynthesizeSettings, station: Station, day: int) -> list[Arrival]:
    """Return the arrivals at a station whose onset lies on a day and whose ratio reaches the floor, in time order."""
    return sorted(
        (
            arrival
            for arrival in arrivals_near(settings, station, day * DAY_NS, (day + 1) * DAY_NS)
            if day * DAY_NS <= arrival.time_ns < (day + 1) * DAY_NS and arrival.snr >= settings.snr_floor
        ),
        key=lambda arrival: (arrival.time_ns, arrival.event),
    )


def arrivals_near(settings: SynthesizeSettings, station: Station, start_ns: int, end_ns: int) -> list[Arrival]:
    """Return the arrivals at a station, weak ones included, that may show in [start_ns, end_ns)."""
    reach_ns = int(LONGEST_SECONDS * 1e9)
    return [
        arrival
        for day in range((start_ns - 2 * reach_ns) // DAY_NS, (end_ns - 1) // DAY_NS + 1)
        for arrival in _day_arrivals(settings, day)
        if arrival.station.code == station.code
        and start_ns - int(arrival.longest_seconds * 1e9) < arrival.time_ns < end_ns
    ]


@lru_cache(maxsize=64)
def render(settings: SynthesizeSettings, arrival: Arrival) -> tuple[Waveform, float]:
    """Return an arrival's waveform, float32 (3, sample) in m/s from its onset on, and its S-P time (s; NaN if none)."""
    seed, station = settings.seed, arrival.station.name
    streams = Streams(
        source=stream(seed, Purpose.SOURCE, arrival.source),
        path=stream(seed, Purpose.PATH, arrival.source, station),
        variation=stream(seed, Purpose.VARIATION, arrival.event, station),
    )
    s_delay = float("nan")
    if arrival.event_class == "icequake":
        waveform, s_delay = icequake(streams, arrival.ray, settings.rate_hz)
    elif arrival.event_class == "earthquake":
        waveform, s_delay = earthquake(streams, arrival.ray, arrival.magnitude, settings.rate_hz)
    elif arrival.event_class == "tremor":
        waveform = tremor(streams, arrival.ray, settings.rate_hz)
    else:
        waveform = spike(streams.variation, arrival.kind, settings.rate_hz)
    assert waveform.shape[1] <= arrival.longest_seconds * settings.rate_hz + 1
    waveform = waveform[:, : int(arrival.longest_seconds * settings.rate_hz)]
    noise_rms = band_rms(seed, station, arrival.time_ns / 1e9)
    return scale_to_snr(waveform, arrival.snr, noise_rms, settings.rate_hz), s_delay


def num_slots(settings: SynthesizeSettings) -> int:
    """Return the slots per day that give `events_per_station_day` arrivals above the floor on average."""
    return round(settings.events_per_station_day * float(_slot_weights(settings).sum()))


@lru_cache(maxsize=8)
def _day_arrivals(settings: SynthesizeSettings, day: int) -> tuple[Arrival, ...]:
    slots = num_slots(settings)
    if slots == 0:
        return ()
    weights = _slot_weights(settings)
    found: list[Arrival] = []
    for slot in range(slots):
        random = stream(settings.seed, Purpose.SLOTS, day, slot)
        middle_seconds = day * 86_400 + (slot + 0.5) * 86_400 / slots
        tide = np.array([1 + 0.5 * np.sin(2 * np.pi * middle_seconds / _TIDE_SECONDS), 1, 1, 1])
        chances = weights * tide / (weights * tide).sum()
        event_class = CLASSES[int(np.searchsorted(np.cumsum(chances), random.uniform(), side="right").clip(0, 3))]
        first_ns, width_ns = day * DAY_NS + slot * DAY_NS // slots, DAY_NS // slots
        name = f"{day_of(day):%Y%m%d}-{slot:05d}"
        if event_class == "spike":
            found += _spikes(settings, random, name, first_ns, width_ns)
        else:
            found += _event(settings, random, event_class, name, first_ns + int(random.uniform() * width_ns))
    return tuple(found)


def _spikes(
    settings: SynthesizeSettings, random: np.random.Generator, name: str, first_ns: int, width_ns: int
) -> list[Arrival]:
    return [
        Arrival(
            event=f"{name}-{station.code}",
            event_class="spike",
            kind=SPIKE_KINDS[int(own.integers(len(SPIKE_KINDS)))],
            source=f"{name}-{station.code}",
            station=station,
            time_ns=first_ns + int(own.uniform() * width_ns),
            snr=_ratio(settings, own),
            ray=Ray(distance_km=0.0, back_azimuth_deg=0.0, incidence_deg=0.0),
            magnitude=float("nan"),
            longest_seconds=LONGEST_SPIKE_SECONDS,
        )
        for station, own in zip(stations(settings), random.spawn(settings.num_stations), strict=True)
    ]


def _event(
    settings: SynthesizeSettings, random: np.random.Generator, event_class: str, name: str, origin_ns: int
) -> list[Arrival]:
    kind, source, x_km, y_km, depth_km = _place(settings, random, event_class, name, origin_ns)
    strongest = _ratio(settings, random)
    network = stations(settings)
    rays = [_ray(event_class, station, x_km, y_km, depth_km) for station in network]
    noise = [band_rms(settings.seed, station.name, origin_ns / 1e9) for station in network]
    audible = np.array([_attenuation(event_class, ray) for ray in rays]) / noise
    ratios = strongest * audible / audible.max()
    loudest = int(audible.argmax())
    magnitude = _magnitude(event_class, strongest * noise[loudest], rays[loudest])
    return [
        Arrival(
            event=name,
            event_class=event_class,
            kind=kind,
            source=source,
            station=station,
            time_ns=origin_ns + int(ray.distance_km / _first_velocity(event_class) * 1e9),
            snr=float(ratio),
            ray=ray,
            magnitude=magnitude,
            longest_seconds=_longest_seconds(event_class, ray, magnitude),
        )
        for station, ray, ratio in zip(network, rays, ratios, strict=True)
        if ratio >= _QUIET_AMPLITUDE
    ]


def _place(
    settings: SynthesizeSettings, random: np.random.Generator, event_class: str, name: str, origin_ns: int
) -> tuple[str, str, float, float, float]:
    kind, source, draw = "single", name, random
    if event_class == "icequake" and random.uniform() < 0.6:
        period = origin_ns // (_SWARM_SECONDS * 1_000_000_000)
        family = int(random.integers(3))
        kind, source = "swarm", f"swarm-{period}-{family}"
        draw = stream(settings.seed, Purpose.SWARM, period, family)
    near = stations(settings)[int(draw.integers(settings.num_stations))]
    azimuth = draw.uniform(0, 2 * np.pi)
    if event_class == "icequake":
        distance_km, depth_km = float(draw.uniform(0.2, 3.0)), float(draw.choice([0.02, 0.4]))
    elif event_class == "tremor":
        distance_km, depth_km = float(draw.uniform(0.5, 15.0)), 0.1
        kind = "harmonic"
    else:
        distance_km, depth_km = float(np.exp(draw.uniform(np.log(12.0), np.log(180.0)))), float(draw.uniform(3, 15))
        kind = "local" if distance_km < 100 else "regional"
    x_km, y_km = near.x_km + distance_km * np.sin(azimuth), near.y_km + distance_km * np.cos(azimuth)
    if kind == "swarm":
        x_km, y_km = x_km + random.normal(0, 0.02), y_km + random.normal(0, 0.02)
    return kind, source, float(x_km), float(y_km), depth_km


def _ray(event_class: str, station: Station, x_km: float, y_km: float, depth_km: float) -> Ray:
    east, north = x_km - station.x_km, y_km - station.y_km
    across = float(np.hypot(east, north))
    incidence = float(np.rad2deg(np.arctan2(across, depth_km)))
    if event_class == "earthquake":
        incidence = min(incidence, 90.0) * 0.4
    return Ray(
        distance_km=float(np.hypot(across, depth_km)),
        back_azimuth_deg=float(np.rad2deg(np.arctan2(east, north)) % 360),
        incidence_deg=incidence,
    )


def _attenuation(event_class: str, ray: Ray) -> float:
    if event_class == "earthquake":
        return float(ray.distance_km**-1.11 * 10 ** (-0.00189 * ray.distance_km))
    if event_class == "tremor":
        return float(ray.distance_km**-0.5 * np.exp(-0.03 * ray.distance_km))
    return float(ray.distance_km**-1.0 * np.exp(-0.1 * ray.distance_km))


def _first_velocity(event_class: str) -> float:
    return {"icequake": ICE_P_KM_S, "earthquake": CRUST_P_KM_S, "tremor": ICE_RAYLEIGH_KM_S}[event_class]


def _longest_seconds(event_class: str, ray: Ray, magnitude: float) -> float:
    if event_class == "icequake":
        return longest_icequake_seconds(ray)
    if event_class == "earthquake":
        return longest_earthquake_seconds(ray, magnitude)
    return LONGEST_TREMOR_SECONDS


def _magnitude(event_class: str, velocity_m_s: float, ray: Ray) -> float:
    if event_class == "tremor":
        return float("nan")
    # Local magnitude of Hutton and Boore (1987) with the displacement of a 5 Hz wave of this velocity.
    displacement_nm = velocity_m_s / (2 * np.pi * 5.0) * 1e9
    correction = 1.11 * np.log10(ray.distance_km) + 0.00189 * ray.distance_km - 2.09
    return float(np.log10(displacement_nm) + correction)


def _ratio(settings: SynthesizeSettings, random: np.random.Generator) -> float:
    # A Pareto law keeps its shape when scaled and cut at the floor again, so distance leaves every class the same law.
    least = (settings.snr_floor / settings.snr_ceiling) ** settings.snr_exponent
    return float(settings.snr_floor * random.uniform(least, 1.0) ** (-1 / settings.snr_exponent))


@lru_cache(maxsize=8)
def _slot_weights(settings: SynthesizeSettings) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return slots per expected arrival, by class, (4,): a class that few stations record needs more events."""
    shares = settings.shares
    wanted = np.array([shares.icequake, shares.earthquake, shares.spike, shares.tremor])
    network = stations(settings)
    heard = np.ones(len(CLASSES))
    for number, event_class in enumerate(CLASSES):
        if event_class == "spike":
            continue
        random = stream(settings.seed, Purpose.AUDIBILITY, event_class)
        audible = []
        for trial in range(400):
            place = _place(settings, random, event_class, "trial", trial * _SWARM_SECONDS * 1_000_000_000)
            gain = np.array([_attenuation(event_class, _ray(event_class, station, *place[2:])) for station in network])
            audible.append(((gain / gain.max()) ** settings.snr_exponent).mean())
        heard[number] = np.mean(audible)
    return np.asarray(wanted / wanted.sum() / heard)


def start_ns(settings: SynthesizeSettings) -> int:
    """Return the archive's first instant, ns since 1970-01-01 UTC."""
    first = settings.start
    return int(datetime(first.year, first.month, first.day, tzinfo=UTC).timestamp()) * 1_000_000_000
