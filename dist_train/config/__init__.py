"""The config of a run: one TOML file, checked at once, written back resolved.

Each file has the sections of one concern, and every key its meaning beneath it; `dist-train keys` prints them all. No
torch is imported here, so that the command line refuses a typing error at once. Units stand in the names. `load` reads
a file and overrides; `Config.digest` is what the members of a run compare before they train together.
"""

from dist_train.config.foretelling import DeviceConfig
from dist_train.config.links import ChangeConfig
from dist_train.config.reading import load, load_kept, parse
from dist_train.config.replicas import ReplicaConfig
from dist_train.config.section import ConfigError
from dist_train.config.training import DataConfig, InnerConfig, Method, ModelConfig
from dist_train.config.whole import Config

__all__ = [
    "ChangeConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "DeviceConfig",
    "InnerConfig",
    "Method",
    "ModelConfig",
    "ReplicaConfig",
    "load",
    "load_kept",
    "parse",
]
