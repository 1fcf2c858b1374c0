"""Small models of other libraries with random weights, and an input for each."""

from collections.abc import Callable

from . import audio, diffusion, graphs, images, language, segmentation, series
from .example import Example

__all__ = ["EXTRAS", "LIBRARIES", "Example"]

# A library by the name that Python imports, under the extra of sigtorch that brings it.
EXTRAS: dict[str, dict[str, Callable[[], dict[str, Example]]]] = {
    "models": {
        "timm": images.timm,
        "torchvision": images.torchvision,
        "transformers": language.transformers,
    },
    "reach": {
        "diffusers": diffusion.diffusers,
        "efficientnet_pytorch": images.efficientnet_pytorch,
        "geffnet": images.geffnet,
        "monai": segmentation.monai,
        "open_clip": images.open_clip,
        "pytorch_forecasting": series.pytorch_forecasting,
        "segmentation_models_pytorch": segmentation.segmentation_models_pytorch,
        "speechbrain": audio.speechbrain,
        "torch_geometric": graphs.torch_geometric,
        "torchaudio": audio.torchaudio,
        "ultralytics": images.ultralytics,
        "vit_pytorch": images.vit_pytorch,
        "x_transformers": language.x_transformers,
    },
}
LIBRARIES = {library: examples for libraries in EXTRAS.values() for library, examples in libraries.items()}
