"""The unlabelled reviews of aclImdb as a corpus for pretraining: one review a paragraph.

    python benchmarks/imdb_text.py aclImdb_v1.tar.gz reviews.txt

Several archives may be named. Repeated reviews are kept once, and none is kept that also occurs
among the labelled ones of train or test, so that pretraining has seen no text it is tested on.
"""

from __future__ import annotations

import argparse
import re
import sys
import tarfile
from pathlib import Path

from minibert.tasks.labelled import clean_text

_UNLABELLED = re.compile(r"(?:^|/)train/unsup/[^/]+\.txt$")
_LABELLED = re.compile(r"(?:^|/)(?:train|test)/(?:pos|neg)/[^/]+\.txt$")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archives", nargs="+", type=Path, help="tar archives of aclImdb")
    parser.add_argument("output", type=Path, help="text file to write")
    args = parser.parse_args()
    reviews: dict[str, str] = {}  # letters and digits only -> text
    labelled: set[str] = set()
    read = 0
    for path in args.archives:
        with tarfile.open(path) as archive:
            for member in archive:
                if not (_UNLABELLED.search(member.name) or _LABELLED.search(member.name)):
                    continue
                handle = archive.extractfile(member)
                assert handle is not None  # a plain file
                text = clean_text(handle.read().decode())
                key = re.sub(r"\W+", "", text.lower())
                if _LABELLED.search(member.name):
                    labelled.add(key)
                elif key:
                    read += 1
                    reviews.setdefault(key, text)
    kept = [text for key, text in reviews.items() if key not in labelled]
    if not kept:
        sys.exit("no unlabelled reviews in there; expected files train/unsup/*.txt")
    args.output.write_text("\n\n".join(kept) + "\n", encoding="utf-8")
    also = sum(key in labelled for key in reviews)
    print(f"{read:,} unlabelled reviews, {read - len(reviews):,} repeated and {also:,} that are")
    print(f"also labelled left out; {len(kept):,} written to {args.output}")


if __name__ == "__main__":
    main()
