"""Pictures on their way to the disk."""
from pathlib import Path

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


def check_endings(*paths):
    """Refuse a name that no picture can have, before an hour is spent on drawing it."""
    for path in paths:
        if path and Path(path).suffix.lower() not in ENDINGS:
            raise ValueError(f"{path}: not a picture's name; it should end in "
                             f"{', '.join(ENDINGS)}")


def save(image, path):
    """Write a picture, making its folder; say where it is."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    print(path)
