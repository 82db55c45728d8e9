"""From a caption to numbers: byte-pair encoding in CLIP's own file format."""

from tinydiff.text.tokenizer import Tokenizer

__all__ = ["Tokenizer"]
