"""The HTML page of explained images: one file that needs neither network nor script, its pictures beside it."""

import shutil
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from types import TracebackType
from typing import IO, Any

__all__ = ["Page"]

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; padding: 0 1rem; max-width: 1400px; color: #222;
  background: #fafafa; }
h1 { font-size: 1.4rem; margin-bottom: .3rem; }
.about { color: #555; max-width: 75ch; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, CARDpx), 1fr)); gap: 1rem; }
article { background: #fff; border: 1px solid #ddd; border-left: 4px solid #bbb; border-radius: 6px; padding: .8rem; }
article.right { border-left-color: #3a9d5d; }
article.wrong { border-left-color: #d0453e; }
.pictures { display: flex; flex-wrap: wrap; gap: .5rem; }
figure { margin: 0; }
figure img { width: 150px; display: block; image-rendering: auto; }
.small img { image-rendering: pixelated; }
figcaption { font-size: .75rem; color: #666; overflow-wrap: anywhere; max-width: 150px; }
ol { list-style: none; margin: .6rem 0; padding: 0; }
li { position: relative; padding: 0 .4rem; margin: 2px 0; display: flex; justify-content: space-between; }
li span { position: relative; overflow-wrap: anywhere; }
li i { position: absolute; inset: 0 auto 0 0; background: #dbe7f5; border-radius: 3px; }
p { margin: .3rem 0; }
.path { font: .75rem/1.3 ui-monospace, monospace; color: #666; overflow-wrap: anywhere; }
"""
SMALL = 75  # pixels; wider images are smoothed by the browser, narrower ones shown pixel by pixel


class Page:
    """Collects one card an image and writes the page when all are there; memory holds none of them.

    Args:
        path: File to write.
        methods: Names of the maps on each card.
        width: Of the images, pixels.
    """

    def __init__(self, path: Path, methods: Sequence[str], width: int) -> None:
        self.path, self.methods, self.small = path, methods, width < SMALL
        self._cards: IO[str] = path.with_suffix(".part").open("w+", encoding="utf-8", errors="replace")

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._cards.close()
        self.path.with_suffix(".part").unlink(missing_ok=True)

    def add(self, record: Mapping[str, Any], pictures: Mapping[str, str], explained: str, target: str | None) -> None:
        """A card.

        Args:
            record: As `prediction_records` makes them.
            pictures: Files beside the page, by what is written under each.
            explained: Name of the class that the maps explain.
            target: Name of the true class, if it is known.
        """
        said = record["class_name"]
        kind = "" if target is None else " class=right" if said == target else " class=wrong"
        figures = "".join(
            f'<figure><img src="{escape(file)}" alt="{escape(name)}" loading="lazy">'
            f"<figcaption>{escape(name)}</figcaption></figure>"
            for name, file in pictures.items()
        )
        listed = "".join(
            f'<li><i style="width:{entry["probability"]:.1%}"></i><span>{escape(entry["class_name"])}</span>'
            f"<span>{entry['probability']:.1%}</span></li>"
            for entry in record["top_k"]
        )
        notes = "" if explained == said else f"<p>maps explain <b>{escape(explained)}</b></p>"
        if target is not None:
            verdict = "right" if said == target else "wrong"
            notes += f"<p>{verdict}: is <b>{escape(target)}</b></p>"
        print(
            f"<article{kind}><div class=pictures>{figures}</div><ol>{listed}</ol>{notes}"
            f"<p class=path>{escape(str(record['path']))}</p></article>",
            file=self._cards,
        )

    def finish(self, title: str, about: Sequence[str]) -> None:
        """Write the page.

        Args:
            title: Its heading.
            about: Paragraphs under it.
        """
        style = STYLE.replace("CARD", str(min(158 * (len(self.methods) + 1) + 30, 1140)))
        paragraphs = "".join(f"<p class=about>{escape(line)}</p>\n" for line in about)
        with self.path.open("w", encoding="utf-8", errors="replace") as page:
            page.write(
                '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
                '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
                f"<title>{escape(title)}</title>\n<style>{style}</style></head>\n<body>\n"
                f"<h1>{escape(title)}</h1>\n{paragraphs}"
                f'<main class="cards{" small" if self.small else ""}">\n'
            )
            self._cards.seek(0)
            shutil.copyfileobj(self._cards, page)
            page.write("</main>\n</body>\n</html>\n")
