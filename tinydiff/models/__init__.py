"""The networks; each opens and writes the field's own files."""
from tinydiff.models.autoencoder import Autoencoder, Gaussian, Reconstruction
from tinydiff.models.classifier import Classification, Classifier
from tinydiff.models.clip import CLIP, Pairs
from tinydiff.models.clip_text import CLIPText, TextEncoding
from tinydiff.models.clip_vision import CLIPVision, ImageEncoding
from tinydiff.models.discriminator import PatchDiscriminator
from tinydiff.models.dit import DiT
from tinydiff.models.unet import UNet, UNetGradients

__all__ = ["CLIP", "Autoencoder", "CLIPText", "CLIPVision", "Classification", "Classifier", "DiT",
           "Gaussian", "ImageEncoding", "Pairs", "PatchDiscriminator", "Reconstruction",
           "TextEncoding", "UNet", "UNetGradients"]
