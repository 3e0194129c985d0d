"""Where the nodes are in ComfyUI's menu."""

__all__ = ["CATEGORY"]

CATEGORY = "model_patches/foveate"
