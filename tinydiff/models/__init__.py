"""The networks; each opens and writes the field's own files."""
from tinydiff.models.clip import CLIPText, TextEncoding
from tinydiff.models.unet import UNet, UNetGradients

__all__ = ["CLIPText", "TextEncoding", "UNet", "UNetGradients"]
