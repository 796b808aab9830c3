"""Make a data set of colour pictures with words: emoji of eight openly licensed sets, drawn and captioned.

    pip install resvg-py
    python -m scripts.make_emoji runs/emoji [--size 64] [--sets noto twemoji ...]
    accelerate launch train.py --config configs/emoji.yaml

Writes train.parquet and test.parquet with the columns image (RGBA), text (a list of captions, the longest first),
concept, style, class, license, and README.md with the licences and authors. ``npm pack`` fetches the sets, in
Iconify's format, and Unicode's names and keywords; the packages are kept in ``--packages`` and fetched once.

The pictures of one concept in one style are a pair. A tenth of all pairs is in test.parquet: such a concept is in
train.parquet in other styles, and the style with other concepts. Of the pictures in other skin tones one in three is
kept. Pictures that look alike and pictures that are black are left out.
"""

import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from ddpm_hf.errors import Parser, UserError, run_command

# package -> the style in words, by which captions call it
STYLES = {
    "noto": "noto",
    "twemoji": "twemoji",
    "openmoji": "outline",
    "fluent-emoji-flat": "flat",
    "fluent-emoji": "3d",
    "emojione": "emojione",
    "fxemoji": "firefox",
    "streamline-emojis": "streamline",
}
RUN_TOGETHER = {"firefox"}  # styles whose names have no hyphens
ANNOTATIONS = {"cldr-annotations-full": "annotations", "cldr-annotations-derived-full": "annotationsDerived"}
SMALLEST, LARGEST = 8, 2048  # pixels
BOX = {"left": 0, "top": 0, "width": 16, "height": 16}  # of an Iconify picture, with the format's defaults
TONES = "(medium-light|medium-dark|light|medium|dark)"
TONE = re.compile(rf"(-{TONES})+$|-{TONES}-skin-tone\b")  # two sets leave the words out
TONES_KEPT, TEST_SHARE = 3, 10  # one in so many
DARK = 40  # of 255: a picture whose opaque pixels are all below it is black
KEYWORDS = 6  # in a caption
# by what the name says, in this order; the rest are things
CLASSES = {
    "clock": r"\b(clock|oclock|thirty)\b",
    "face": r"\bface\b|grinning|smiling|pouting|kissing|^imp$|^ogre$|^ghost$|^alien|^robot",
    "person": r"\b(person|people|man|men|woman|women|boy|girl|baby|child|prince|princess|hands?|finger|palm|fist|fairy|"
    r"runner|dancer|family|couple)\b",
    "sign": r"\b(squared?|symbol|sign|arrow|button|mark|circle|diamond|heart|keycap|flag|letter|bubble)\b",
}


def class_of(concept: str) -> str:
    """The class of a concept, by its words."""
    return next((title for title, pattern in CLASSES.items() if re.search(pattern, concept)), "thing")


def words_of(name: str) -> str:
    """``name`` in lower case, with single spaces between words: "Grinning-Face", "one o'clock" -> "one oclock"."""
    return " ".join(re.findall(r"[^\W_]+", re.sub(r"['.\u2019\u201c\u201d]", "", name.lower())))


def chance(text: str) -> float:
    """A number in [0, 1) that depends on ``text`` alone, so that a set that is made again is the same."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


# ---- packages


def fetch(name: str, folder: Path) -> Path:
    """The newest packed package of ``name`` in ``folder``, fetched by npm if there is none."""
    pattern = name.replace("@", "").replace("/", "-") + "-[0-9]*.tgz"
    if not (found := sorted(folder.glob(pattern))):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            command = ["npm", "pack", "--silent", "--pack-destination", str(folder), name]
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise UserError(f"{name} is fetched by npm, which is not installed; see nodejs.org.") from None
        except subprocess.CalledProcessError as error:
            raise UserError(f"npm cannot fetch {name}: {error.stderr.strip() or error}.") from None
        found = sorted(folder.glob(pattern))
    if not found:
        raise UserError(f"npm fetched {name}, but {folder} has no {pattern}.")
    return found[-1]


def read_json(package: Path, file: str) -> dict:
    """A JSON file of a packed package."""
    try:
        with tarfile.open(package) as archive:
            return json.load(archive.extractfile(f"package/{file}"))
    except (OSError, tarfile.TarError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{package} has no {file} that can be read ({error}); delete it to fetch it again.") from None


# ---- names


class Names:
    """Unicode's names and keywords of emoji, by words."""

    def __init__(self, annotations: list[dict]):
        self.keywords: dict[str, list[str]] = {}
        for entry in (entry for table in annotations for entry in table.values() if entry.get("tts")):
            name = words_of(entry["tts"][0])
            if "skin tone" not in name:  # the pictures' names say the tone
                self.keywords[name] = [words_of(word) for word in entry.get("default", []) if words_of(word) != name]
        self._joined = {name.replace(" ", ""): name for name in self.keywords}
        self._words = Counter(word for name in self.keywords for word in name.split() if len(word) > 1)

    def concept(self, name: str, run_together: bool = False) -> tuple[str, str] | None:
        """The concept that a picture's ``name`` stands for, and its skin tone in words.

        Names of one set number variants ("ring-2"), those of another say "flag-for-china". Names that are
        ``run_together`` ("redlantern") are split into known words; None where that fails.
        """
        if (words := words_of(name)) in self.keywords:
            return words, ""
        tones = [match[0] for match in TONE.finditer(name)]
        words = re.sub(r" \d+$", "", re.sub(r"^flag for ", "flag ", words_of(TONE.sub("", name))))
        tone = words_of("".join(tones).replace("-skin-tone", "")) + " skin tone" if tones else ""
        if not run_together or " " in words or words in self.keywords or words in self._words:
            return words, tone
        if words in self._joined:
            return self._joined[words], tone
        parts = self._split(words)
        return (" ".join(parts), tone) if parts else None

    def _split(self, text: str) -> list[str] | None:
        """``text`` as the fewest known words, or None."""
        best: list[list[str] | None] = [[]]  # of the text's first 0, 1, ... letters
        for end in range(1, len(text) + 1):
            starts = [start for start in range(end) if best[start] is not None and text[start:end] in self._words]
            best.append(min(([*best[start], text[start:end]] for start in starts), key=len, default=None))
        return best[-1]

    def captions(self, concept: str, tone: str, style: str) -> list[str]:
        """Captions of a picture, the longest first, with and without keywords and style."""
        name = f"{concept}, {tone}" if tone else concept
        keywords = ", ".join(self.keywords.get(concept, [])[:KEYWORDS])
        texts = [f"{name}, {style} style", f"an emoji of {name} in {style} style", name, f"an emoji of {name}"]
        if keywords:
            texts += [f"{name}, {style} style: {keywords}", f"{name}: {keywords}"]
        return sorted(dict.fromkeys(texts), key=lambda text: (-len(text), text))


# ---- pictures


@dataclass
class Picture:
    name: str
    concept: str
    tone: str
    style: str
    licence: str
    png: bytes


def draw(pictures: dict, name: str, size: int) -> Image.Image:
    """The picture ``name`` of a set in Iconify's format: RGBA, ``size`` x ``size``, centred where it is not square."""
    from resvg_py import svg_to_bytes

    icon = pictures["icons"][name]
    left, top, width, height = (icon.get(key, pictures.get(key, default)) for key, default in BOX.items())
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{size}" height="{size}">{icon["body"]}</svg>'
    )
    return Image.open(io.BytesIO(svg_to_bytes(svg_string=svg, skip_system_fonts=True))).convert("RGBA")


def is_black(image: Image.Image) -> bool:
    """Whether the image has no opaque pixel that is brighter than DARK."""
    colours = Image.new("RGB", image.size)
    colours.paste(image, mask=image.getchannel("A").point(lambda value: 255 if value > 127 else 0))
    return max(high for _, high in colours.getextrema()) < DARK


def pictures_of(package: Path, style: str, names: Names, size: int, seen: set[bytes], left_out: Counter):
    """The pictures of a set, without those that look like one in ``seen``; counts what it leaves out and why."""
    pictures = read_json(package, "icons.json")
    try:
        icons = {name: icon["body"] for name, icon in pictures["icons"].items() if not icon.get("hidden")}
        licence = read_json(package, "info.json")["license"]["spdx"]
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{package} is not a set of pictures in Iconify's format; delete it.") from None
    for name in tqdm(icons, desc=style, unit="picture", leave=False):
        meaning = names.concept(name, style in RUN_TOGETHER)
        if meaning is None:
            left_out["name that cannot be read"] += 1
        elif meaning[1] and chance(f"{name} {style}") >= 1 / TONES_KEPT:
            left_out["skin tone"] += 1
        else:
            try:
                image = draw(pictures, name, size)
            except ValueError as error:
                raise UserError(f"{package}: the picture {name} cannot be drawn: {error}.") from None
            look = hashlib.sha256(image.tobytes()).digest()
            if look in seen or is_black(image):
                left_out["black" if look not in seen else "looks like another"] += 1
                continue
            seen.add(look)
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            yield Picture(name, *meaning, style, licence, buffer.getvalue())


def held_out(pairs: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """A tenth of the (concept, style) pairs, each of whose concepts is left in another style."""
    styles = Counter(concept for concept, _ in pairs)
    chosen = set()
    for pair in sorted(pairs, key=lambda pair: chance(" / ".join(pair))):
        if len(chosen) < len(pairs) // TEST_SHARE and styles[pair[0]] > 1:
            styles[pair[0]] -= 1
            chosen.add(pair)
    return chosen


# ---- the data set


def write_parquet(path: Path, pictures: list[Picture], names: Names):
    import datasets

    classes = datasets.ClassLabel(names=sorted([*CLASSES, "thing"]))
    features = {"image": datasets.Image(), "text": datasets.List(datasets.Value("string"))}
    features |= {column: datasets.Value("string") for column in ("concept", "style", "license")} | {"class": classes}
    columns = {
        "image": [{"bytes": picture.png, "path": f"{picture.style} {picture.name}.png"} for picture in pictures],
        "text": [names.captions(picture.concept, picture.tone, picture.style) for picture in pictures],
        "concept": [picture.concept for picture in pictures],
        "style": [picture.style for picture in pictures],
        "license": [picture.licence for picture in pictures],
        "class": [class_of(picture.concept) for picture in pictures],
    }
    datasets.Dataset.from_dict(columns, datasets.Features(features)).to_parquet(path)


CARD = """# Emoji with words

{total:,} pictures of {size} x {size} pixels in {styles} styles, {test:,} of them in test.parquet. Written by
`python -m scripts.make_emoji`. Each picture keeps the licence of its set:

| style | set | pictures | licence | author |
|---|---|---|---|---|
{rows}

Captions are made of the pictures' names and of the short names and keywords of the Unicode CLDR (Unicode License v3).
"""


def main(argv: list[str] | None = None):
    """Make the data set as ``argv`` says.

    Raises:
        UserError: if a package cannot be fetched or read, or a picture cannot be drawn.
    """
    parser = Parser(prog="python -m scripts.make_emoji", description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="folder for the data set")
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels (default %(default)s)")
    parser.add_argument(
        "--sets", nargs="+", choices=STYLES, default=list(STYLES), metavar="SET", help=", ".join(STYLES)
    )
    parser.add_argument("--packages", type=Path, default=Path("runs/emoji_packages"), help="folder for the packages")
    options = parser.parse_args(argv)
    if not SMALLEST <= options.size <= LARGEST:
        raise UserError(f"--size is {options.size}, expected {SMALLEST} to {LARGEST} pixels.")
    try:
        import resvg_py  # noqa: F401
    except ImportError:
        raise UserError("the pictures are drawn by the package resvg-py: pip install resvg-py.") from None
    card = options.output / "README.md"
    ours = card.is_file() and card.read_text(encoding="utf-8", errors="replace").startswith(CARD[:20])
    if options.output.exists() and not ours and any(options.output.iterdir()):
        raise UserError(f"{options.output} has files that this command did not write; choose another folder.")

    tables = []
    for name, key in ANNOTATIONS.items():
        tables.append(read_json(fetch(name, options.packages), f"{key}/en/annotations.json")[key]["annotations"])
    names, pictures, seen, left_out, rows = Names(tables), [], set(), Counter(), []
    for name in options.sets:
        package = fetch(f"@iconify-json/{name}", options.packages)
        drawn = list(pictures_of(package, STYLES[name], names, options.size, seen, left_out))
        info = read_json(package, "info.json")
        author = f"{info['author']['name']}, {info['author'].get('url', '')}"
        rows.append(f"| {STYLES[name]} | {info['name']} | {len(drawn):,} | {info['license']['spdx']} | {author} |")
        pictures += drawn
    test = held_out({(picture.concept, picture.style) for picture in pictures})
    parts = {"train": [], "test": []}
    for picture in pictures:
        parts["test" if (picture.concept, picture.style) in test else "train"].append(picture)

    options.output.mkdir(parents=True, exist_ok=True)
    for part, chosen in parts.items():
        if chosen:  # of a single style nothing is held out
            write_parquet(options.output / f"{part}.parquet", chosen, names)
    numbers = {"total": len(pictures), "size": options.size, "styles": len(options.sets), "test": len(parts["test"])}
    card.write_text(CARD.format(**numbers, rows="\n".join(rows)), encoding="utf-8")
    print(f"wrote {len(parts['train']):,} pictures to train.parquet and {len(parts['test']):,} to test.parquet", end="")
    print(f" in {options.output}; left out: " + ", ".join(f"{count:,} {why}" for why, count in left_out.items()))


if __name__ == "__main__":
    sys.exit(run_command(main))
