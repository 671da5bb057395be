"""Stage one: raw text to a pretrained model. `minibert pretrain`."""

import sys

from minibert.cli import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
