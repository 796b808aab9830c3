"""Draw the pictures of Noto Color Emoji into folders, one folder a class, as RGBA files to train on.

    apt-get install fonts-noto-color-emoji
    python -m scripts.make_emoji /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf runs/emoji_pictures
    accelerate launch train.py --config configs/emoji.yaml

Every single code point that the font has a picture of is drawn, some 1,380; sequences are not. The font is by Google,
under the SIL Open Font License 1.1.
"""

import argparse
import re
import unicodedata
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from tqdm.auto import tqdm

STRIKE = 109  # the one size, in pixels, that the font's bitmaps come in
CANVAS = (136, 136)
CODE_POINTS = [*range(0x2190, 0x2C00), *range(0x1F000, 0x1FB00)]
# by what the Unicode name says, in this order; the rest are things
CLASSES = {
    "clock": r"CLOCK",
    "face": r"\bFACE\b|GRINNING|SMILING|POUTING|KISSING|^IMP$|OGRE|^GHOST$|ALIEN|ROBOT",
    "person": r"\b(PERSON|MAN|WOMAN|BOY|GIRL|BABY|PRINCE|PRINCESS|HAND|HANDS|FINGER|PALM|FIST|FAIRY|RUNNER|DANCER)\b",
    "sign": r"SQUARED|SYMBOL|SIGN\b|ARROW|BUTTON|MARK\b|SQUARE|CIRCLE|DIAMOND|HEART|KEYCAP|FLAG",
}


def class_of(name: str) -> str:
    """The folder of a picture, by its Unicode name."""
    return next((title for title, pattern in CLASSES.items() if re.search(pattern, name)), "thing")


def draw(character: str, font: ImageFont.FreeTypeFont) -> Image.Image | None:
    """The picture of a character, centred on a transparent square, or None where the font has none."""
    image = Image.new("RGBA", CANVAS)
    ImageDraw.Draw(image).text((0, 0), character, font=font, embedded_color=True)
    box = image.getbbox()
    if box is None:
        return None
    square = Image.new("RGBA", CANVAS)
    picture = image.crop(box)
    square.paste(picture, tuple((side - size) // 2 for side, size in zip(CANVAS, picture.size)))
    return square


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("font", help="NotoColorEmoji.ttf")
    parser.add_argument("output", type=Path, help="folder for the pictures")
    options = parser.parse_args(argv)
    font, count = ImageFont.truetype(options.font, STRIKE), 0
    for code in tqdm(CODE_POINTS, unit="code point", leave=False):
        name = unicodedata.name(chr(code), "")
        if not name or (image := draw(chr(code), font)) is None:
            continue
        folder = options.output / class_of(name)
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{code:x} {name.lower()}.png")
        count += 1
    print(f"wrote {count} pictures to {options.output}")


if __name__ == "__main__":
    main()
