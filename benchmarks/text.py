"""Text for the benchmarks that read some: real documents, repeated up to a size."""

from __future__ import annotations

from pathlib import Path

from minibert import corpus

OPTIONS = corpus.ReaderOptions()


def write_text(sources: list[Path], megabytes: float, path: Path) -> None:
    """Writes the documents of text files, again and again until they have the size.

    A counter in every document keeps copies from being alike.
    """
    wanted, written, copy = round(megabytes * 10**6), 0, 0
    with path.open("w", encoding="utf-8") as out:
        while written < wanted:
            for source in sources:
                for piece in corpus.read_pieces(source, OPTIONS):
                    start = f"\n\nCopy {copy}.\n" if piece.starts_document else "\n"
                    written += len((start + "\n".join(piece.lines)).encode())
                    out.write(start + "\n".join(piece.lines))
                    if written >= wanted:
                        return
            copy += 1


def read_documents(path: Path) -> list[str]:
    """The documents of a text file, each in one string."""
    documents: list[str] = []
    for piece in corpus.read_pieces(path, OPTIONS):
        text = "\n".join(piece.lines)
        if piece.starts_document or not documents:
            documents.append(text)
        else:
            documents[-1] += "\n" + text
    return documents
