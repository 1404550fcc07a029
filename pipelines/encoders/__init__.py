"""Encoders: networks, baselines, and how they are stored; torch and safetensors only."""

from pipelines.encoders.encoder import BASELINES, NETWORKS, Encoder, build_network, load
from pipelines.encoders.networks import NetworkConfig, ProjectionHead

__all__ = ["BASELINES", "NETWORKS", "Encoder", "NetworkConfig", "ProjectionHead", "build_network", "load"]
