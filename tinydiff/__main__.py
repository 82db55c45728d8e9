"""``python -m tinydiff``: the command line on any system."""
from tinydiff.cli import main

if __name__ == "__main__":
    main()
