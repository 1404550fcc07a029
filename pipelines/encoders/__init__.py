"""Encoders: networks, baselines, and how they are stored; torch and safetensors only."""

from .encoder import BASELINES, NETWORKS, Encoder, build_network, load
from .networks import NetworkConfig, ProjectionHead

__all__ = ["BASELINES", "NETWORKS", "Encoder", "NetworkConfig", "ProjectionHead", "build_network", "load"]
