"""Stage two: a pretrained model and labelled data to a finished model. `minibert finetune`."""

import sys

from minibert.cli import main

if __name__ == "__main__":
    sys.exit(main(["finetune", *sys.argv[1:]]))
