"""The network's StationXML: coordinates, sensitivity and the seismometers' poles and zeros."""

import io
from datetime import date, timedelta

import numpy as np
from obspy import UTCDateTime
from obspy.core.inventory import Channel, Inventory, Network, Response, Site
from obspy.core.inventory import Station as StationElement

from pipelines.synthesize.noise import CORNER_HZ, DAMPING
from pipelines.synthesize.plan import Station

_ORIENTATION = {"E": (90.0, 0.0), "N": (0.0, 0.0), "Z": (0.0, -90.0)}


def station_xml(
    network: str,
    placed: tuple[Station, ...],
    channels: tuple[str, str, str],
    location: str,
    rate_hz: int,
    counts_per_m_s: float,
    start: date,
    num_days: int,
) -> bytes:
    """Return the StationXML of a network whose stations all have the same three channels, valid for its days."""
    begin = UTCDateTime(start.isoformat())
    end = UTCDateTime((start + timedelta(days=num_days)).isoformat())
    corner = 2 * np.pi * CORNER_HZ
    poles = [corner * complex(-DAMPING, sign * np.sqrt(1 - DAMPING**2)) for sign in (1, -1)]
    response = Response.from_paz(
        zeros=[0j, 0j],
        poles=poles,
        stage_gain=counts_per_m_s,
        stage_gain_frequency=5.0,
        input_units="M/S",
        output_units="COUNTS",
        normalization_frequency=5.0,
    )
    inventory = Inventory(
        source="firnline synthesize",
        sender="firnline",
        created=begin,
        module="firnline",
        networks=[
            Network(
                code=network,
                description="Synthetic seismograms",
                start_date=begin,
                end_date=end,
                stations=[
                    StationElement(
                        code=station.code,
                        latitude=station.latitude,
                        longitude=station.longitude,
                        elevation=station.elevation_m,
                        site=Site(name=f"Synthetic station {station.code}"),
                        start_date=begin,
                        end_date=end,
                        channels=[
                            Channel(
                                code=channel,
                                location_code=location,
                                latitude=station.latitude,
                                longitude=station.longitude,
                                elevation=station.elevation_m,
                                depth=0.0,
                                azimuth=_ORIENTATION[channel[-1]][0],
                                dip=_ORIENTATION[channel[-1]][1],
                                sample_rate=rate_hz,
                                start_date=begin,
                                end_date=end,
                                response=response,
                            )
                            for channel in channels
                        ],
                    )
                    for station in placed
                ],
            )
        ],
    )
    content = io.BytesIO()
    inventory.write(content, format="STATIONXML", validate=True)
    return content.getvalue()
