"""foveate: attention that is sharp where it matters, for stock diffusers pipelines."""

__version__ = "0.1.0"
